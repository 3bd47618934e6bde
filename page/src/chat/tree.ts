// A conversation is a tree of messages; one path from a root to the leaf is shown.
import type { Message } from "../store/records";

export type Messages = ReadonlyMap<string, Message>;

/** Return the messages from the root to `leaf`. */
export function pathTo(messages: Messages, leaf: string | null): Message[] {
    const path: Message[] = [];
    let message = leaf === null ? undefined : messages.get(leaf);
    while (message && path.length <= messages.size) {
        path.push(message);
        message = message.parent === null ? undefined : messages.get(message.parent);
    }
    return path.reverse();
}

/** Return the children of each message, oldest first; those of the root under null. */
export function childrenOf(messages: Messages): Map<string | null, Message[]> {
    const children = new Map<string | null, Message[]>();
    for (const message of messages.values()) {
        const siblings = children.get(message.parent);
        if (siblings) siblings.push(message);
        else children.set(message.parent, [message]);
    }
    for (const siblings of children.values()) siblings.sort((a, b) => a.created - b.created);
    return children;
}

/** Return the last message below `message`, always taking the newest version. */
export function newestLeaf(messages: Messages, message: Message): string {
    const children = childrenOf(messages);
    let leaf = message;
    for (let next = children.get(leaf.id)?.at(-1); next; next = children.get(leaf.id)?.at(-1)) leaf = next;
    return leaf.id;
}
