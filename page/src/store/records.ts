// What the page keeps. Times are in milliseconds since 1970, sizes in pixels and bytes.

export type Detail = "auto" | "low" | "high";
export type Kind = "picture" | "document" | "video";

/** A file of a message. `id` is the server's handle (sha256:...), under which the page keeps the file as well. */
export interface Attachment {
    id: string;
    name: string;
    kind: Kind;
    bytes: number;
    width?: number;
    height?: number;
    detail: Detail;
    /** The most tokens that the picture may take; null: the model's own limit. */
    budget: number | null;
    /** Of a document, such as 1-3,7; empty: all. */
    pages?: string;
    /** Of a document its pages, of a video the frames that are shown by default. */
    pageCount?: number;
    /** Of a video: how many frames at even times. */
    frames?: number;
}

/** How the model saw one picture: a part of the server's timings. */
export interface Seen {
    original_size: [number, number];
    used_size: [number, number];
    tiles: number;
    tokens: number;
    cache: string;
    notes?: string[];
}

export interface Figures {
    promptTokens: number;
    cachedTokens: number;
    answerTokens: number;
    tokensPerSecond: number | null;
    waitMs: number;
    promptMs: number;
}

export type MessageState = "done" | "running" | "stopped" | "failed" | "cut";

/** A message is a node of a tree: the children of one message are its versions. */
export interface Message {
    id: string;
    conversation: string;
    parent: string | null;
    role: "user" | "assistant";
    text: string;
    thoughts: string;
    attachments: Attachment[];
    /** The ids of the attachments, for the index that finds who still needs a file. */
    files: string[];
    state: MessageState;
    error: string;
    model: string;
    created: number;
    /** How all pictures of the prompt were seen, in the order of the prompt. */
    seen?: Seen[];
    figures?: Figures;
}

/** How to answer. Empty or null: the server's default. */
export interface Settings {
    model: string;
    system: string;
    temperature: number | null;
    topP: number | null;
    maxTokens: number | null;
    seed: number | null;
    think: boolean;
    /** A JSON Schema as text; empty: the answer is free text. */
    schema: string;
}

export const DEFAULT_SETTINGS: Settings = {
    model: "",
    system: "",
    temperature: null,
    topP: null,
    maxTokens: null,
    seed: null,
    think: false,
    schema: "",
};

export interface Conversation {
    id: string;
    title: string;
    created: number;
    updated: number;
    /** The last message of the branch that is shown. */
    leaf: string | null;
    settings: Settings;
    /** Kept in memory only. */
    isPrivate: boolean;
}

/** One prompt for many pictures. */
export interface Table {
    id: string;
    title: string;
    created: number;
    updated: number;
    prompt: string;
    settings: Settings;
    /** Whether it goes on after a reload. */
    running: boolean;
}

export interface Row {
    id: string;
    table: string;
    position: number;
    attachment: Attachment;
    files: string[];
    state: "waiting" | "running" | "done" | "failed";
    text: string;
    error: string;
}

export interface StoredFile {
    id: string;
    blob: Blob;
    /** A small picture to show in its place, where the browser can draw it. */
    thumbnail: Blob | null;
}

export function newId(): string {
    const bytes = crypto.getRandomValues(new Uint8Array(12));
    return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
