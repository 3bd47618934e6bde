// Open and keep tables.
import { batch, signal } from "@preact/signals";
import { dropFiles, storeFor } from "../chat/keep";
import { DEFAULT_SETTINGS, newId, type Row, type Table } from "../store/records";
import { table } from "../views/ui";

export const tables = signal<Table[]>([]);
/** The rows of the open table, in their order. */
export const rows = signal<Row[]>([]);

const store = () => storeFor(false);

export async function loadTables(): Promise<void> {
    tables.value = (await store().all("tables")).sort((a, b) => b.updated - a.updated);
}

/** Show a table, or a new one. */
export async function openTable(known: Table | null): Promise<void> {
    const now = Date.now();
    const fresh = { id: newId(), title: "", created: now, updated: now, prompt: "", running: false };
    const opened = known ?? { ...fresh, settings: { ...DEFAULT_SETTINGS } };
    const its = known ? await rowsOf(known.id) : [];
    batch(() => {
        table.value = opened;
        rows.value = its;
    });
}

export async function rowsOf(id: string): Promise<Row[]> {
    return (await store().rowsOf(id)).sort((a, b) => a.position - b.position);
}

export async function keepTable(changed: Table): Promise<void> {
    const next = { ...changed, updated: Date.now() };
    batch(() => {
        if (table.value?.id === next.id) table.value = next;
        tables.value = [next, ...tables.value.filter((other) => other.id !== next.id)];
    });
    await store().put("tables", next);
}

export async function keepRows(...changed: Row[]): Promise<void> {
    changed = changed.filter((row) => tables.value.some((one) => one.id === row.table)); // others were deleted
    const byId = new Map(changed.map((row) => [row.id, row]));
    const shown = changed.filter((row) => row.table === table.value?.id);
    if (shown.length) {
        const known = new Set(rows.value.map((row) => row.id));
        const added = shown.filter((row) => !known.has(row.id));
        rows.value = [...rows.value.map((row) => byId.get(row.id) ?? row), ...added];
    }
    await store().put("rows", ...changed);
}

export async function removeRow(row: Row): Promise<void> {
    rows.value = rows.value.filter((other) => other.id !== row.id);
    await store().remove("rows", [row.id]);
    await dropFiles(false, row.files);
}
