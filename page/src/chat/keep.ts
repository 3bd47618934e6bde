// Open, keep, find and delete conversations.
import { forgetFile } from "../server/api";
import { type Database, InMemory, openDatabase } from "../store/database";
import type { Attachment, Conversation, Message, StoredFile } from "../store/records";
import { conversations, current, freshConversation, runs, show, showConversation, showMessage } from "./state";

let disk: Database = new InMemory();
const memory = new InMemory();
const LAST = "pocketvlm.last";

/** Open what the browser keeps. Returns false where it keeps nothing beyond this page. */
export async function openStore(): Promise<boolean> {
    const { database, keeps } = await openDatabase();
    disk = database;
    const kept = await disk.all("conversations");
    conversations.value = kept.sort((a, b) => b.updated - a.updated);
    return keeps;
}

/** Let the server forget the files of private chats: the page is about to close. */
export function forgetPrivateFiles(): void {
    for (const id of memory.ids("files")) void forgetFile(id);
}

export function storeFor(isPrivate: boolean): Database {
    return isPrivate ? memory : disk;
}

/** Show the conversation of the address, else the last one that was open. */
export async function openLast(): Promise<void> {
    const id = location.hash.slice(1) || localStorage.getItem(LAST);
    const conversation = conversations.value.find((one) => one.id === id);
    if (conversation) await open(conversation);
    else startConversation(false);
}

/** With `byClick`, the browser's Back leads to where the page was before. */
export async function open(conversation: Conversation, byClick = false): Promise<void> {
    const its = await storeFor(conversation.isPrivate).messagesOf(conversation.id);
    show(
        conversation,
        its.map((message) => settled(message, conversation)),
    );
    remember(conversation, byClick);
}

/** A message that was running when its page was closed was stopped by that. */
function settled(message: Message, conversation: Conversation): Message {
    const runs_ = runs.value.get(conversation.id)?.message.value;
    if (runs_?.id === message.id) return runs_;
    return message.state === "running" ? { ...message, state: "stopped" } : message;
}

export function startConversation(isPrivate: boolean): void {
    show(freshConversation(isPrivate, current.value.settings), []);
    remember(current.value);
}

function remember({ id, isPrivate }: Conversation, byClick = false): void {
    if (isPrivate) {
        history.replaceState(null, "", location.pathname);
        return;
    }
    localStorage.setItem(LAST, id);
    if (location.hash.slice(1) === id) return;
    if (byClick) history.pushState(null, "", `#${id}`);
    else history.replaceState(null, "", `#${id}`);
}

export async function keepConversation(conversation: Conversation): Promise<void> {
    showConversation(conversation);
    await storeFor(conversation.isPrivate).put("conversations", conversation);
}

export async function keepMessage(conversation: Conversation, message: Message): Promise<void> {
    showMessage(message);
    await storeFor(conversation.isPrivate).put("messages", message);
}

// ---- files

/** Hold a file in memory, until a message or row needs it or it is given up. */
export async function holdFile(file: StoredFile): Promise<void> {
    await memory.put("files", file);
}

/** Keep files that were held, with what needs them now. */
export async function keepFiles(isPrivate: boolean, ids: string[]): Promise<void> {
    if (isPrivate) return; // memory is where they are to stay
    for (const id of new Set(ids)) {
        const file = await memory.get("files", id);
        if (!file) continue;
        await disk.put("files", file);
        if (!(await memory.needs(id))) await memory.remove("files", [id]);
    }
}

export async function fileOf(id: string): Promise<StoredFile | undefined> {
    return (await memory.get("files", id)) ?? disk.get("files", id);
}

/** Delete files that nothing needs any more, here and on the server. */
export async function dropFiles(isPrivate: boolean, ids: Iterable<string>): Promise<void> {
    const store = storeFor(isPrivate);
    for (const id of new Set(ids)) {
        if (await store.needs(id)) continue;
        await store.remove("files", [id]);
        if (!(await memory.needs(id)) && !(await disk.needs(id))) await forgetFile(id);
    }
}

export function filesOf(attachments: Attachment[]): string[] {
    return attachments.map((attachment) => attachment.id);
}

// ---- delete

export async function deleteConversation(conversation: Conversation): Promise<void> {
    conversations.value = conversations.value.filter((other) => other.id !== conversation.id);
    runs.value.get(conversation.id)?.abort.abort();
    const store = storeFor(conversation.isPrivate);
    const its = await store.messagesOf(conversation.id);
    await store.remove(
        "messages",
        its.map((message) => message.id),
    );
    await store.remove("conversations", [conversation.id]);
    await dropFiles(
        conversation.isPrivate,
        its.flatMap((message) => message.files),
    );
    if (current.value.id === conversation.id) startConversation(false);
}

/** Delete all that is kept. What still runs must not write it again: table/delete.ts. */
export async function clear(): Promise<void> {
    conversations.value = [];
    for (const run of runs.value.values()) run.abort.abort();
    const files = [...(await disk.all("files")), ...(await memory.all("files"))];
    await Promise.all([disk.clear(), memory.clear()]);
    localStorage.removeItem(LAST);
    startConversation(false);
    await Promise.all(files.map((file) => forgetFile(file.id)));
}

// ---- find

export interface Hit {
    conversation: Conversation;
    excerpt: string;
}

/** Find a text in titles and messages, the newest conversation first. */
export async function search(words: string): Promise<Hit[]> {
    const wanted = words.toLowerCase();
    const excerpts = new Map<string, string>();
    for (const message of [...(await disk.all("messages")), ...(await memory.all("messages"))]) {
        if (excerpts.has(message.conversation)) continue;
        const names = message.attachments.map((attachment) => attachment.name).join(" ");
        for (const text of [message.text, names]) {
            const at = text.toLowerCase().indexOf(wanted);
            if (at < 0) continue;
            const begin = Math.max(0, at - 24);
            excerpts.set(message.conversation, (begin ? "…" : "") + text.slice(begin, at + words.length + 48));
            break;
        }
    }
    return conversations.value
        .filter((one) => excerpts.has(one.id) || one.title.toLowerCase().includes(wanted))
        .map((conversation) => ({ conversation, excerpt: excerpts.get(conversation.id) ?? "" }));
}
