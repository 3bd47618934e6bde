// The server keeps files for an hour, and forgets them when it starts again.
import { fileOf } from "../chat/keep";
import { sendFile } from "../server/api";
import { ServerError } from "../server/call";

/** By the file's id: pages of one document need it only once. */
const sending = new Map<string, Promise<void>>();

/** Make a request that names files; where the server has forgotten one, send them again and repeat the request. */
export async function withFiles<T>(files: string[], signal: AbortSignal, request: () => Promise<T>): Promise<T> {
    try {
        return await request();
    } catch (error) {
        if (!(error instanceof ServerError) || error.code !== "image_not_found") throw error;
        for (const id of new Set(files)) {
            await resend(id);
            signal.throwIfAborted();
        }
        return request();
    }
}

function resend(id: string): Promise<void> {
    let sent = sending.get(id);
    if (!sent) {
        sent = fileOf(id)
            .then(async (file) => void (file && (await sendFile(file.blob))))
            .finally(() => sending.delete(id));
        sending.set(id, sent);
    }
    return sent;
}
