// What is open on the page: dialogs, the list of chats, the table in place of a chat.
import { signal } from "@preact/signals";
import type { Model } from "../server/types";
import type { Attachment, Table } from "../store/records";

export type Opened =
    | { kind: "settings" }
    | { kind: "camera" }
    | { kind: "picture"; attachment: Attachment; change: ((attachment: Attachment) => void) | null };

export const dialog = signal<Opened | null>(null);
export const sidebarOpen = signal(false);
export const table = signal<Table | null>(null);
export const models = signal<Model[]>([]);
/** Whether the browser keeps anything beyond this page. */
export const keeps = signal(true);

/** Return the model that answers with these settings, if the server has said so. */
export function modelFor(name: string): Model | null {
    return models.value.find((model) => model.id === name) ?? models.value[0] ?? null;
}
