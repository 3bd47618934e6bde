// What is shown: the conversations, the open one, and what runs. Views read the signals; only chat/ writes them.
import { batch, computed, signal, type Signal } from "@preact/signals";
import type { Conversation, Message } from "../store/records";
import { DEFAULT_SETTINGS, newId } from "../store/records";
import type { Progress } from "./progress";
import { childrenOf, type Messages, pathTo } from "./tree";

/** A request that is being answered. `message` is the answer so far. */
export interface Run {
    /** The answer's id. */
    id: string;
    message: Signal<Message>;
    progress: Signal<Progress>;
    abort: AbortController;
}

export const conversations = signal<Conversation[]>([]);
export const current = signal<Conversation>(freshConversation(false));
export const messages = signal<Messages>(new Map());
/** By the conversation's id. */
export const runs = signal<ReadonlyMap<string, Run>>(new Map());
/** A sentence for screen readers. */
export const announcement = signal("");
/** An error that belongs to nothing on the page. */
export const notice = signal("");

export const path = computed(() => pathTo(messages.value, current.value.leaf));
export const versions = computed(() => childrenOf(messages.value));
export const currentRun = computed(() => runs.value.get(current.value.id) ?? null);

export function freshConversation(isPrivate: boolean, settings = DEFAULT_SETTINGS): Conversation {
    const now = Date.now();
    return { id: newId(), title: "", created: now, updated: now, leaf: null, settings: { ...settings }, isPrivate };
}

/** Show a conversation with its messages. */
export function show(conversation: Conversation, its: Message[]): void {
    batch(() => {
        current.value = conversation;
        messages.value = new Map(its.map((message) => [message.id, message]));
    });
}

/** Show a changed message if its conversation is the open one. */
export function showMessage(message: Message): void {
    if (message.conversation !== current.value.id) return;
    messages.value = new Map(messages.value).set(message.id, message);
}

/** Show a changed conversation, the newest one first in the list. */
export function showConversation(conversation: Conversation): void {
    batch(() => {
        if (conversation.id === current.value.id) current.value = conversation;
        const others = conversations.value.filter((other) => other.id !== conversation.id);
        conversations.value = [conversation, ...others].sort((a, b) => b.updated - a.updated);
    });
}

export function setRun(conversation: string, run: Run | null): void {
    const next = new Map(runs.value);
    if (run) next.set(conversation, run);
    else next.delete(conversation);
    runs.value = next;
}
