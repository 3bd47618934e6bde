// From what is kept to what is sent.
import { texts } from "../texts";
import type { Attachment, Message, Settings } from "../store/records";

type Part = Record<string, unknown>;

/** Return the body of a chat request that answers the last message, or goes on with it where the model began it. */
export function chatBody(path: Message[], settings: Settings): Record<string, unknown> {
    const messages: Part[] = path.map(messageOf).filter((message) => message !== null);
    if (settings.system) messages.unshift({ role: "system", content: settings.system });
    return {
        ...(settings.model && { model: settings.model }),
        messages,
        stream: true,
        stream_options: { include_usage: true },
        ...samplingOf(settings),
    };
}

/** Throws an Error whose message a person can read if the schema is not JSON. */
export function samplingOf(settings: Settings): Record<string, unknown> {
    const fields: Record<string, unknown> = {
        temperature: settings.temperature,
        top_p: settings.topP,
        max_tokens: settings.maxTokens,
        seed: settings.seed,
    };
    if (settings.think) fields.enable_thinking = true;
    if (settings.schema.trim()) {
        const schema = parsedSchema(settings.schema);
        fields.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
    }
    return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null));
}

export function parsedSchema(text: string): unknown {
    try {
        return JSON.parse(text);
    } catch (error) {
        throw new Error(texts.schema.invalid((error as Error).message));
    }
}

function messageOf(message: Message): Part | null {
    if (message.role === "assistant") {
        return message.text ? { role: "assistant", content: message.text } : null;
    }
    if (!message.attachments.length) return { role: "user", content: message.text };
    const parts = message.attachments.map(partOf);
    if (message.text) parts.push({ type: "text", text: message.text });
    return { role: "user", content: parts };
}

export function partOf(attachment: Attachment): Part {
    const options = {
        detail: attachment.detail,
        ...(attachment.budget !== null && { max_image_tokens: attachment.budget }),
    };
    if (attachment.kind === "picture") {
        return { type: "image_url", image_url: { url: attachment.id, ...options } };
    }
    const { id, name, pages, frames } = attachment;
    const chosen = { ...(pages && { pages }), ...(frames && { frames }) };
    return { type: "file", url: id, filename: name, ...chosen, ...options };
}
