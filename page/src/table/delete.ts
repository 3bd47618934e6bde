// Delete a table, or everything. What runs is stopped first, so that it writes nothing back.
import { batch } from "@preact/signals";
import { clear, dropFiles, storeFor } from "../chat/keep";
import { tray } from "../pictures/attach";
import type { Table } from "../store/records";
import { table } from "../views/ui";
import { rows, rowsOf, tables } from "./keep";
import { running, stopTable } from "./run";

export async function deleteTable(gone: Table): Promise<void> {
    stopTable(gone.id);
    batch(() => {
        tables.value = tables.value.filter((other) => other.id !== gone.id);
        if (table.value?.id === gone.id) table.value = null;
    });
    const store = storeFor(false);
    const its = await rowsOf(gone.id);
    await store.remove("tables", [gone.id]);
    await store.remove(
        "rows",
        its.map((row) => row.id),
    );
    await dropFiles(
        false,
        its.flatMap((row) => row.files),
    );
}

/** Delete everything that the page keeps. */
export async function deleteAll(): Promise<void> {
    for (const abort of running.value.values()) abort.abort();
    batch(() => {
        tables.value = [];
        table.value = null;
        rows.value = [];
        tray.value = [];
    });
    await clear();
}
