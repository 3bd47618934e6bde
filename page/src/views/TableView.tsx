// Many pictures, one question, a row each.
import { useRef, useState } from "preact/hooks";
import { dropFiles, keepFiles } from "../chat/keep";
import { columnsOf } from "../chat/schema";
import { notice } from "../chat/state";
import { saveAs } from "../chat/transfer";
import { send } from "../pictures/attach";
import { ACCEPT } from "../pictures/kinds";
import { newId, type Row, type Settings, type Table } from "../store/records";
import { keepRows, keepTable, removeRow, rows, tables } from "../table/keep";
import { running, runTable, stopTable } from "../table/run";
import { cellText, csvOf, jsonlOf, valuesOf } from "../table/save";
import { texts } from "../texts";
import { Icon, IconButton } from "./Icon";
import { SettingsForm } from "./SettingsForm";
import { Thumbnail } from "./Thumbnail";
import { dialog, table } from "./ui";

/** Add files as rows of the open table. */
export async function addRows(files: Iterable<File>): Promise<void> {
    const into = table.value!;
    if (!rows.value.length) await keepTable(into);
    let position = Math.max(-1, ...rows.value.map((row) => row.position));
    for (const file of files) {
        try {
            const attachment = await send(file);
            // It was deleted meanwhile.
            if (!tables.value.some((one) => one.id === into.id)) return await dropFiles(true, [attachment.id]);
            const row = { id: newId(), table: into.id, position: ++position, attachment, files: [attachment.id] };
            await keepFiles(false, row.files);
            await keepRows({ ...row, state: "waiting", text: "", error: "" });
        } catch (error) {
            notice.value = `${file.name}: ${(error as Error).message}`;
        }
    }
}

export function TableView({ table: shown }: { table: Table }) {
    const isRunning = running.value.has(shown.id);
    const done = rows.value.filter((row) => row.state === "done").length;
    return (
        <div class="thread">
            <div class="table-view">
                <h1>{texts.table.lead}</h1>
                <Question shown={shown} locked={isRunning} />
                <Buttons shown={shown} isRunning={isRunning} done={done} />
                {rows.value.length > 0 && <Rows shown={shown} isRunning={isRunning} />}
            </div>
        </div>
    );
}

function Question({ shown, locked }: { shown: Table; locked: boolean }) {
    const change = (fields: Partial<Table>) => void keepTable({ ...shown, ...fields });
    const settings = (fields: Partial<Settings>) => change({ settings: { ...shown.settings, ...fields } });
    return (
        <fieldset class="plain" disabled={locked}>
            <label class="field">
                <span>{texts.table.prompt}</span>
                <textarea
                    rows={2}
                    placeholder={texts.table.promptPlaceholder}
                    value={shown.prompt}
                    onInput={(event) => {
                        const prompt = event.currentTarget.value;
                        change({ prompt, title: prompt.trim().slice(0, 60) });
                    }}
                />
            </label>
            <details class="more">
                <summary>{texts.settings.title}</summary>
                <SettingsForm settings={shown.settings} change={settings} />
            </details>
        </fieldset>
    );
}

interface ButtonsProps {
    shown: Table;
    isRunning: boolean;
    done: number;
}

function Buttons({ shown, isRunning, done }: ButtonsProps) {
    const picker = useRef<HTMLInputElement>(null);
    const [adding, setAdding] = useState(false);
    const total = rows.value.length;
    const add = async (files: FileList | null) => {
        setAdding(true);
        await addRows(files ?? []);
        setAdding(false);
    };
    const name = (shown.title || "table").replaceAll(/[^\w-]+/g, "-").slice(0, 40);
    return (
        <div class="buttons start">
            <input
                ref={picker}
                class="visually-hidden"
                type="file"
                multiple
                accept={ACCEPT}
                tabIndex={-1}
                aria-label={texts.table.add}
                onChange={(event) => {
                    const input = event.currentTarget;
                    void add(input.files).then(() => (input.value = ""));
                }}
            />
            <button type="button" class="button" disabled={adding} onClick={() => picker.current!.click()}>
                <Icon name="plus" /> {texts.table.add}
            </button>
            {isRunning ? (
                <button type="button" class="button primary" onClick={() => stopTable(shown.id)}>
                    <Icon name="stop" /> {texts.table.stop}
                </button>
            ) : (
                (done < total || total === 0) && (
                    <button
                        type="button"
                        class="button primary"
                        disabled={!shown.prompt.trim() || total === 0 || adding}
                        onClick={() => void runTable(shown)}
                    >
                        {done ? texts.table.goOn : texts.table.run}
                    </button>
                )
            )}
            {total > 0 && (
                <span class="count" role="status">
                    {texts.table.progress(done, total)}
                </span>
            )}
            <span class="spread" />
            {done > 0 && (
                <>
                    <button
                        type="button"
                        class="button quiet"
                        onClick={() => saveAs(`${name}.csv`, "text/csv", csvOf(shown, rows.value))}
                    >
                        <Icon name="download" /> {texts.table.csv}
                    </button>
                    <button
                        type="button"
                        class="button quiet"
                        onClick={() => saveAs(`${name}.jsonl`, "application/jsonl", jsonlOf(shown, rows.value))}
                    >
                        <Icon name="download" /> {texts.table.jsonl}
                    </button>
                </>
            )}
        </div>
    );
}

function Rows({ shown, isRunning }: { shown: Table; isRunning: boolean }) {
    const columns = columnsOf(shown.settings.schema);
    return (
        <div class="scroll" tabIndex={0} role="region" aria-label={texts.table.title}>
            <table class="rows">
                <thead>
                    <tr>
                        <th scope="col">{texts.table.picture}</th>
                        {(columns.length ? columns : [texts.table.answer]).map((column) => (
                            <th key={column} scope="col">
                                {column}
                            </th>
                        ))}
                        <th>
                            <span class="visually-hidden">{texts.table.actions}</span>
                        </th>
                    </tr>
                </thead>
                <tbody>
                    {rows.value.map((row) => (
                        <RowView key={row.id} row={row} columns={columns} isRunning={isRunning} />
                    ))}
                </tbody>
            </table>
        </div>
    );
}

function RowView({ row, columns, isRunning }: { row: Row; columns: string[]; isRunning: boolean }) {
    const { name } = row.attachment;
    const values = columns.length ? valuesOf(row) : null;
    return (
        <tr class={row.state}>
            <th scope="row">
                <div class="row-head">
                    <button
                        type="button"
                        class="row-picture"
                        aria-label={texts.tray.view(name)}
                        onClick={() => {
                            dialog.value = { kind: "picture", attachment: row.attachment, change: null };
                        }}
                    >
                        <Thumbnail attachment={row.attachment} />
                    </button>
                    <span class="row-name">{name}</span>
                </div>
            </th>
            {values ? (
                columns.map((column) => <td key={column}>{cellText(values[column])}</td>)
            ) : (
                <td colSpan={Math.max(1, columns.length)}>
                    {row.state === "running" && <span class="dot" />}
                    {row.text || texts.table.state[row.state]}
                    {row.error && <span class="failure">{row.error}</span>}
                </td>
            )}
            <td class="row-actions">
                {!isRunning && row.state !== "waiting" && (
                    <IconButton
                        icon="retry"
                        label={texts.table.retry(name)}
                        onClick={() => void keepRows({ ...row, state: "waiting", text: "", error: "" })}
                    />
                )}
                {!isRunning && (
                    <IconButton icon="close" label={texts.table.remove(name)} onClick={() => void removeRow(row)} />
                )}
            </td>
        </tr>
    );
}
