// Chats as one file: to take them elsewhere, or to keep them beyond this browser.
import type { Attachment, Conversation, Message, Settings, StoredFile } from "../store/records";
import { DEFAULT_SETTINGS, newId } from "../store/records";
import { thumbnailOf } from "../pictures/thumbnail";
import { fileOf, keepConversation, storeFor } from "./keep";

const FORMAT = "pocketvlm-chats";
type Json = Record<string, unknown>;

/** Return the chats with their pictures as JSON. */
export async function exported(chosen: Conversation[]): Promise<string> {
    const chats = [];
    const files = new Map<string, unknown>();
    for (const conversation of chosen) {
        const messages = await storeFor(conversation.isPrivate).messagesOf(conversation.id);
        chats.push({ ...conversation, messages });
        for (const id of messages.flatMap((message) => message.files)) {
            const file = files.has(id) ? undefined : await fileOf(id);
            if (file) files.set(id, { id, type: file.blob.type, base64: await base64Of(file.blob) });
        }
    }
    return JSON.stringify({ format: FORMAT, version: 1, chats, files: [...files.values()] });
}

/** Add the chats of such a file, each as a new one. Returns how many. Throws an Error where the text is not such a file. */
export async function imported(text: string): Promise<number> {
    const data = object(JSON.parse(text));
    if (data.format !== FORMAT || data.version !== 1) throw new Error("another format");
    const chats = list(data.chats).map((chat) => chatOf(object(chat)));
    const files = await Promise.all(list(data.files).map((file) => storedFile(object(file))));
    await storeFor(false).put("files", ...files.filter((file) => file !== null));
    for (const { conversation, messages } of chats) {
        await storeFor(false).put("messages", ...messages);
        await keepConversation(conversation);
    }
    return chats.length;
}

export function saveAs(name: string, type: string, text: string): void {
    const url = URL.createObjectURL(new Blob([text], { type }));
    const link = document.createElement("a");
    link.href = url;
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// ---- reading a file that may come from anywhere: every value is checked, and unknown ones are left out

function chatOf(chat: Json): { conversation: Conversation; messages: Message[] } {
    const id = newId();
    const given = list(chat.messages).map((message) => object(message));
    const ids = new Map<string, string>(); // of the messages so far: only these can be parents, so there are no circles
    const place = (value: unknown) => (value === null ? null : (ids.get(text(value)) ?? null));
    const messages = given.map((message): Message => {
        const attachments = list(message.attachments).map((attachment) => attachmentOf(object(attachment)));
        const parent = place(message.parent);
        const own = newId();
        ids.set(text(message.id), own);
        return {
            id: own,
            conversation: id,
            parent,
            role: message.role === "assistant" ? "assistant" : "user",
            text: text(message.text),
            thoughts: text(message.thoughts),
            attachments,
            files: attachments.map((attachment) => attachment.id),
            state: message.state === "cut" ? "cut" : "done",
            error: "",
            model: text(message.model),
            created: number(message.created),
        };
    });
    const { created, updated } = chat;
    const conversation: Conversation = {
        id,
        title: text(chat.title),
        created: number(created),
        updated: number(updated),
        leaf: place(chat.leaf),
        settings: settingsOf(object(chat.settings)),
        isPrivate: false,
    };
    return { conversation, messages };
}

function attachmentOf(value: Json): Attachment {
    const kind = value.kind === "document" || value.kind === "video" ? value.kind : "picture";
    return {
        id: handle(value.id),
        name: text(value.name),
        kind,
        bytes: number(value.bytes),
        width: value.width === undefined ? undefined : number(value.width),
        height: value.height === undefined ? undefined : number(value.height),
        detail: value.detail === "low" || value.detail === "high" ? value.detail : "auto",
        budget: value.budget === null ? null : number(value.budget),
        pages: value.pages === undefined ? undefined : text(value.pages),
        pageCount: value.pageCount === undefined ? undefined : number(value.pageCount),
        frames: value.frames === undefined ? undefined : number(value.frames),
    };
}

function settingsOf(value: Json): Settings {
    const optional = (one: unknown) => (one === null || one === undefined ? null : number(one));
    return {
        ...DEFAULT_SETTINGS,
        system: text(value.system),
        schema: text(value.schema),
        temperature: optional(value.temperature),
        topP: optional(value.topP),
        maxTokens: optional(value.maxTokens),
        seed: optional(value.seed),
        think: value.think === true,
    };
}

/** Return a file of an export; null where it may not be what is already kept under its id. */
async function storedFile(value: Json): Promise<StoredFile | null> {
    const bytes = Uint8Array.from(atob(text(value.base64)), (character) => character.charCodeAt(0));
    const blob = new Blob([bytes], { type: text(value.type) });
    const id = handle(value.id);
    const subtle: SubtleCrypto | undefined = crypto.subtle; // only with https, or on this machine
    if (subtle) {
        const digest = new Uint8Array(await subtle.digest("SHA-256", bytes));
        const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
        if (id !== `sha256:${hex}`) throw new Error("the file of another id");
    } else if (await storeFor(false).get("files", id)) {
        return null;
    }
    return { id, blob, thumbnail: await thumbnailOf(blob) };
}

async function base64Of(blob: Blob): Promise<string> {
    const bytes = new Uint8Array(await blob.arrayBuffer());
    let binary = "";
    for (let at = 0; at < bytes.length; at += 0x8000) {
        binary += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
    }
    return btoa(binary);
}

function object(value: unknown): Json {
    if (typeof value !== "object" || value === null || Array.isArray(value)) throw new Error("not an object");
    return value as Json;
}

function list(value: unknown): unknown[] {
    if (!Array.isArray(value)) throw new Error("not a list");
    return value;
}

function text(value: unknown): string {
    if (typeof value !== "string") throw new Error("not a text");
    return value;
}

function number(value: unknown): number {
    if (typeof value !== "number" || !Number.isFinite(value)) throw new Error("not a number");
    return value;
}

function handle(value: unknown): string {
    const id = text(value);
    if (!/^sha256:[0-9a-f]{64}$/.test(id)) throw new Error("not a handle");
    return id;
}
