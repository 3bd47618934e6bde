// The server's routes that the page uses.
import type { Attachment } from "../store/records";
import { call, callJson, post } from "./call";
import type { Model, Picture, Plan, PlanQuestion } from "./types";

export async function listModels(): Promise<Model[]> {
    return (await callJson<{ data: Model[] }>("v1/models")).data;
}

/** Send a file once. The answer's id names it in messages from then on. */
export function sendFile(file: Blob): Promise<Picture> {
    return callJson("v1/images", {
        method: "POST",
        body: file,
        headers: { "content-type": "application/octet-stream" },
    });
}

/** Let the server forget a file, if it still has it. */
export async function forgetFile(id: string): Promise<void> {
    await call(`v1/images/${id}`, { method: "DELETE", keepalive: true }).catch(() => undefined);
}

export function planPicture(question: PlanQuestion, signal?: AbortSignal): Promise<Plan> {
    return callJson("v1/images/plan", post(question, signal));
}

/** Return the pixels that the model gets of a picture, or of a page, as the server makes them. */
export async function seenPicture(
    model: string,
    attachment: Pick<Attachment, "id" | "detail" | "budget">,
    page = 1,
    signal?: AbortSignal,
): Promise<Blob> {
    const query = new URLSearchParams({ model, detail: attachment.detail, page: String(page) });
    if (attachment.budget !== null) query.set("max_image_tokens", String(attachment.budget));
    return (await call(`v1/images/${attachment.id}/seen?${query}`, { signal })).blob();
}

export function askChat(body: unknown, signal: AbortSignal): Promise<Response> {
    return call("v1/chat/completions", post(body, signal));
}
