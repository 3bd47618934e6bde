// Conversations, tables and their files in the browser's IndexedDB, or in memory where that is wanted or all there is.
import { openDB, type DBSchema, type IDBPDatabase } from "idb";
import type { Conversation, Message, Row, StoredFile, Table } from "./records";

interface Schema extends DBSchema {
    conversations: { key: string; value: Conversation };
    messages: { key: string; value: Message; indexes: { conversation: string; files: string } };
    tables: { key: string; value: Table };
    rows: { key: string; value: Row; indexes: { table: string; files: string } };
    files: { key: string; value: StoredFile };
}

type Stores = {
    conversations: Conversation;
    messages: Message;
    tables: Table;
    rows: Row;
    files: StoredFile;
};
export type StoreName = keyof Stores;
const NAMES: StoreName[] = ["conversations", "messages", "tables", "rows", "files"];

export interface Database {
    get<N extends StoreName>(store: N, id: string): Promise<Stores[N] | undefined>;
    all<N extends StoreName>(store: N): Promise<Stores[N][]>;
    put<N extends StoreName>(store: N, ...records: Stores[N][]): Promise<void>;
    remove(store: StoreName, ids: string[]): Promise<void>;
    /** The oldest message first. */
    messagesOf(conversation: string): Promise<Message[]>;
    rowsOf(table: string): Promise<Row[]>;
    /** Whether a message or row still has the file. */
    needs(file: string): Promise<boolean>;
    clear(): Promise<void>;
}

class OnDisk implements Database {
    constructor(private readonly db: IDBPDatabase<Schema>) {}

    get<N extends StoreName>(store: N, id: string) {
        return this.db.get(store, id) as Promise<Stores[N] | undefined>;
    }

    all<N extends StoreName>(store: N) {
        return this.db.getAll(store) as Promise<Stores[N][]>;
    }

    async put<N extends StoreName>(store: N, ...records: Stores[N][]) {
        const transaction = this.db.transaction(store, "readwrite");
        await Promise.all([...records.map((record) => transaction.store.put(record as never)), transaction.done]);
    }

    async remove(store: StoreName, ids: string[]) {
        const transaction = this.db.transaction(store, "readwrite");
        await Promise.all([...ids.map((id) => transaction.store.delete(id)), transaction.done]);
    }

    async messagesOf(conversation: string) {
        return byAge(await this.db.getAllFromIndex("messages", "conversation", conversation));
    }

    rowsOf(table: string) {
        return this.db.getAllFromIndex("rows", "table", table);
    }

    async needs(file: string) {
        const counts = [
            this.db.countFromIndex("messages", "files", file),
            this.db.countFromIndex("rows", "files", file),
        ];
        return (await Promise.all(counts)).some((count) => count > 0);
    }

    async clear() {
        const transaction = this.db.transaction(NAMES, "readwrite");
        await Promise.all([...NAMES.map((name) => transaction.objectStore(name).clear()), transaction.done]);
    }
}

/** For private conversations, and for browsers that keep nothing. */
export class InMemory implements Database {
    private readonly stores = Object.fromEntries(NAMES.map((name) => [name, new Map()])) as unknown as {
        [N in StoreName]: Map<string, Stores[N]>;
    };

    async get<N extends StoreName>(store: N, id: string) {
        return this.stores[store].get(id);
    }

    async all<N extends StoreName>(store: N) {
        return [...this.stores[store].values()];
    }

    async put<N extends StoreName>(store: N, ...records: Stores[N][]) {
        for (const record of records) this.stores[store].set(record.id, record);
    }

    async remove(store: StoreName, ids: string[]) {
        for (const id of ids) this.stores[store].delete(id);
    }

    ids(store: StoreName): string[] {
        return [...this.stores[store].keys()];
    }

    async messagesOf(conversation: string) {
        return byAge([...this.stores.messages.values()].filter((message) => message.conversation === conversation));
    }

    async rowsOf(table: string) {
        return [...this.stores.rows.values()].filter((row) => row.table === table);
    }

    async needs(file: string) {
        const owners = [...this.stores.messages.values(), ...this.stores.rows.values()];
        return owners.some((owner) => owner.files.includes(file));
    }

    async clear() {
        for (const name of NAMES) this.stores[name].clear();
    }
}

function byAge(messages: Message[]): Message[] {
    return messages.sort((a, b) => a.created - b.created);
}

/** What no private conversation touches. Falls back to memory, where the browser refuses to keep anything. */
export async function openDatabase(): Promise<{ database: Database; keeps: boolean }> {
    try {
        const db = await openDB<Schema>("pocketvlm", 1, {
            upgrade(fresh) {
                fresh.createObjectStore("conversations", { keyPath: "id" });
                const messages = fresh.createObjectStore("messages", { keyPath: "id" });
                messages.createIndex("conversation", "conversation");
                messages.createIndex("files", "files", { multiEntry: true });
                fresh.createObjectStore("tables", { keyPath: "id" });
                const rows = fresh.createObjectStore("rows", { keyPath: "id" });
                rows.createIndex("table", "table");
                rows.createIndex("files", "files", { multiEntry: true });
                fresh.createObjectStore("files", { keyPath: "id" });
            },
        });
        return { database: new OnDisk(db), keeps: true };
    } catch {
        return { database: new InMemory(), keeps: false };
    }
}
