// Server-sent events: the chunks of an answer, and the comments that say what the server is doing meanwhile.
import { texts } from "../texts";
import { lost, ServerError, UnreachableError } from "./call";
import type { Chunk } from "./types";

export type StreamEvent = { kind: "chunk"; chunk: Chunk } | { kind: "comment"; text: string };

/** Yield the events of a stream up to its end. Throws ServerError for an error event, UnreachableError for a cut one. */
export async function* readStream(response: Response, signal: AbortSignal): AsyncGenerator<StreamEvent> {
    const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    try {
        for (;;) {
            const { done, value } = await read(reader, signal);
            if (done) throw cut();
            const lines = (rest + value).split("\n");
            rest = lines.pop()!;
            for (const line of lines) {
                if (line.startsWith(":")) yield { kind: "comment", text: line.slice(1).trim() };
                if (!line.startsWith("data:")) continue;
                const data = line.slice(5).trim();
                if (data === "[DONE]") return;
                const chunk = JSON.parse(data) as Chunk;
                if (chunk.error) throw new ServerError(chunk.error.message, 0, chunk.error.code);
                yield { kind: "chunk", chunk };
            }
        }
    } finally {
        reader.cancel().catch(() => undefined);
    }
}

async function read(reader: ReadableStreamDefaultReader<string>, signal: AbortSignal) {
    try {
        return await reader.read();
    } catch (error) {
        if (signal.aborted) throw error;
        throw cut();
    }
}

function cut(): UnreachableError {
    lost();
    return new UnreachableError(texts.errors.cut);
}
