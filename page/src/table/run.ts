// Ask one question about every picture of a table, a few at a time. What is done is kept at once.
import { signal } from "@preact/signals";
import { notice } from "../chat/state";
import { partOf, samplingOf } from "../chat/request";
import { withFiles } from "../pictures/resend";
import { askChat } from "../server/api";
import { ServerError, UnreachableError } from "../server/call";
import { readStream } from "../server/stream";
import type { Row, Table } from "../store/records";
import { texts } from "../texts";
import { keepRows, keepTable, rowsOf, tables } from "./keep";

const AT_A_TIME = 2; // the server works on one while the next one is read
const PAUSE = 1500; // milliseconds after the server refused or went away

/** By the table's id: stops it. */
export const running = signal<ReadonlyMap<string, AbortController>>(new Map());

/** Go on with the tables that ran when the page was closed. */
export function resumeTables(): void {
    for (const table of tables.value) if (table.running) void runTable(table);
}

/** Ask for the rows that are not done. Only one tab runs a table. */
export async function runTable(table: Table): Promise<void> {
    if (running.value.has(table.id)) return;
    if (!navigator.locks) return work(table);
    await navigator.locks.request(`pocketvlm-table-${table.id}`, { ifAvailable: true }, async (lock) => {
        if (lock) await work(table);
        else notice.value = texts.table.elsewhere;
    });
}

export function stopTable(id: string): void {
    running.value.get(id)?.abort();
}

async function work(table: Table): Promise<void> {
    const abort = new AbortController();
    running.value = new Map(running.value).set(table.id, abort);
    await keepTable({ ...table, running: true });
    const waiting = (await rowsOf(table.id)).filter((row) => row.state !== "done");
    const next = async () => {
        for (let row = waiting.shift(); row && !abort.signal.aborted; row = waiting.shift()) {
            await answerRow(table, row, abort.signal);
        }
    };
    try {
        await Promise.all(Array.from({ length: AT_A_TIME }, next));
    } finally {
        const others = new Map(running.value);
        others.delete(table.id);
        running.value = others;
        const latest = tables.value.find((one) => one.id === table.id);
        if (latest) await keepTable({ ...latest, running: false });
    }
}

async function answerRow(table: Table, row: Row, signal: AbortSignal): Promise<void> {
    await keepRows({ ...row, state: "running", error: "" });
    for (;;) {
        try {
            const text = await answerOf(table, row, signal);
            return await keepRows({ ...row, state: "done", text, error: "" });
        } catch (error) {
            if (signal.aborted) return await keepRows({ ...row, state: "waiting", error: "" });
            if (!isPassing(error)) return await keepRows({ ...row, state: "failed", error: (error as Error).message });
            await new Promise((resolve) => setTimeout(resolve, PAUSE));
        }
    }
}

async function answerOf(table: Table, row: Row, signal: AbortSignal): Promise<string> {
    const { model, system } = table.settings;
    const content = [partOf(row.attachment), { type: "text", text: table.prompt }];
    const body = {
        ...(model && { model }),
        messages: [...(system ? [{ role: "system", content: system }] : []), { role: "user", content }],
        stream: true,
        ...samplingOf(table.settings),
    };
    const response = await withFiles(row.files, signal, () => askChat(body, signal));
    let text = "";
    for await (const event of readStream(response, signal)) {
        if (event.kind === "chunk") text += event.chunk.choices[0]?.delta.content ?? "";
    }
    return text;
}

/** Whether it may work a moment later: the server is full, starts again, or is away. */
function isPassing(error: unknown): boolean {
    return error instanceof UnreachableError || (error instanceof ServerError && [429, 503].includes(error.status));
}
