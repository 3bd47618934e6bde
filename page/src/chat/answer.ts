// One turn: keep the question, ask the server, show the answer as it comes, keep it.
import { signal } from "@preact/signals";
import { texts } from "../texts";
import { withFiles } from "../pictures/resend";
import { askChat } from "../server/api";
import { readStream } from "../server/stream";
import type { Chunk } from "../server/types";
import type { Attachment, Conversation, Figures, Message } from "../store/records";
import { newId } from "../store/records";
import { filesOf, keepConversation, keepFiles, keepMessage } from "./keep";
import { afterComment, type Progress, Speedometer } from "./progress";
import { chatBody } from "./request";
import { announcement, conversations, current, messages, type Run, runs, setRun } from "./state";
import { pathTo } from "./tree";

const KEEP_EVERY = 1000; // milliseconds between two writes of an answer that is coming
const TITLE = 60; // characters
let newest = 0; // so that no two messages are of the same time, which orders them

/** Ask in the open conversation. With `replaces`, the question is another version of that one. */
export async function ask(text: string, attachments: Attachment[], replaces?: Message): Promise<void> {
    const conversation = current.value;
    const parent = replaces ? replaces.parent : conversation.leaf;
    const question = newMessage(conversation, parent, "user", text, attachments);
    const title = conversation.title || (text.trim() || attachments[0]?.name || "").slice(0, TITLE);
    const next = { ...conversation, title, leaf: question.id, updated: Date.now() };
    await keepFiles(next.isPrivate, question.files);
    await keepMessage(next, question);
    await keepConversation(next);
    await answer(next, question.id);
}

/** Answer the message before this one once more. */
export async function retry(message: Message): Promise<void> {
    if (message.parent !== null) await answer(current.value, message.parent);
}

/** Let an answer that was cut short go on. */
export async function goOn(message: Message): Promise<void> {
    await run(current.value, { ...message, state: "running", error: "" });
}

/** Show another version of a message, with what follows it. */
export async function showVersion(leaf: string): Promise<void> {
    await keepConversation({ ...current.value, leaf });
}

async function answer(conversation: Conversation, parent: string): Promise<void> {
    await run(conversation, newMessage(conversation, parent, "assistant", "", []));
}

function newMessage(
    conversation: Conversation,
    parent: string | null,
    role: Message["role"],
    text: string,
    attachments: Attachment[],
): Message {
    return {
        id: newId(),
        conversation: conversation.id,
        parent,
        role,
        text,
        thoughts: "",
        attachments,
        files: filesOf(attachments),
        state: role === "assistant" ? "running" : "done",
        error: "",
        model: "",
        created: (newest = Math.max(Date.now(), newest + 1)),
    };
}

async function run(conversation: Conversation, message: Message): Promise<void> {
    if (runs.value.has(conversation.id)) return;
    const path = [...pathTo(messages.value, message.parent), ...(message.text ? [message] : [])];
    const current_: Run = {
        id: message.id,
        message: signal(message),
        progress: signal<Progress>({ step: "waiting" }),
        abort: new AbortController(),
    };
    setRun(conversation.id, current_);
    announcement.value = texts.progress.waiting;
    try {
        await keepMessage(conversation, message);
        current_.abort.signal.throwIfAborted(); // it was deleted meanwhile, and must not come back
        await keepConversation({ ...conversation, leaf: message.id, updated: Date.now() });
        await receive(conversation, path, current_);
    } catch (error) {
        const stopped = current_.abort.signal.aborted;
        const text = stopped ? "" : error instanceof Error ? error.message : String(error);
        current_.message.value = { ...current_.message.value, state: stopped ? "stopped" : "failed", error: text };
    } finally {
        setRun(conversation.id, null);
        // It may have been deleted meanwhile, and must not come back.
        const isThere = conversations.value.some((one) => one.id === conversation.id);
        if (isThere) await keepMessage(conversation, current_.message.value);
        const { state, text, error } = current_.message.value;
        announcement.value = state === "failed" ? error : state === "stopped" ? texts.stopped : texts.answered(text);
    }
}

async function receive(conversation: Conversation, path: Message[], run: Run): Promise<void> {
    const body = chatBody(path, conversation.settings);
    const { signal } = run.abort;
    const files = path.flatMap((one) => one.files);
    const response = await withFiles(files, signal, () => askChat(body, signal));
    const painter = new Painter(run);
    const speed = new Speedometer();
    let keptAt = performance.now();
    try {
        for await (const event of readStream(response, signal)) {
            if (event.kind === "comment") {
                run.progress.value = afterComment(run.progress.value, event.text);
                continue;
            }
            if (painter.add(event.chunk)) run.progress.value = speed.count();
            if (performance.now() - keptAt > KEEP_EVERY) {
                keptAt = performance.now();
                painter.flush();
                if (!signal.aborted) void keepMessage(conversation, run.message.value);
            }
        }
        painter.end();
    } finally {
        painter.flush();
    }
}

/** Collects chunks and shows them once a frame: a fast model sends more than a screen can draw. */
class Painter {
    private text = "";
    private thoughts = "";
    private finish: string | null = null;
    private last: Partial<Message> = {};
    private frame = 0;

    constructor(private readonly run: Run) {}

    /** Return whether the chunk has a piece of the answer. */
    add(chunk: Chunk): boolean {
        const choice = chunk.choices[0];
        const { content, reasoning_content } = choice?.delta ?? {};
        this.text += content ?? "";
        this.thoughts += reasoning_content ?? "";
        this.finish = choice?.finish_reason ?? this.finish;
        if (chunk.timings) {
            this.last = { ...this.last, model: chunk.model, seen: chunk.timings.images };
            this.last.figures = figuresOf(chunk) ?? this.last.figures;
        }
        this.frame ||= requestAnimationFrame(() => this.flush());
        return Boolean(content || reasoning_content);
    }

    flush(): void {
        cancelAnimationFrame(this.frame);
        this.frame = 0;
        if (!this.text && !this.thoughts && !Object.keys(this.last).length) return;
        const { message } = this.run;
        const { text, thoughts } = message.value;
        message.value = { ...message.value, text: text + this.text, thoughts: thoughts + this.thoughts, ...this.last };
        this.text = this.thoughts = "";
    }

    end(): void {
        this.flush();
        const state = this.finish === "length" ? "cut" : "done";
        this.run.message.value = { ...this.run.message.value, state };
    }
}

function figuresOf({ usage, timings }: Chunk): Figures | null {
    if (!usage || !timings) return null;
    return {
        promptTokens: usage.prompt_tokens,
        cachedTokens: usage.prompt_tokens_details.cached_tokens,
        answerTokens: usage.completion_tokens,
        tokensPerSecond: timings.decode_tokens_per_second,
        waitMs: timings.queue_ms + timings.load_ms,
        promptMs: timings.prefill_ms,
    };
}
