// A table as CSV or JSONL.
import { columnsOf } from "../chat/schema";
import type { Row, Table } from "../store/records";

/** Return the values of a row by column, where its answer is an object; null where it is not. */
export function valuesOf(row: Row): Record<string, unknown> | null {
    try {
        const value: unknown = JSON.parse(row.text);
        return typeof value === "object" && value !== null && !Array.isArray(value) ? { ...value } : null;
    } catch {
        return null;
    }
}

export function cellText(value: unknown): string {
    if (value === undefined || value === null) return "";
    return typeof value === "string" ? value : JSON.stringify(value);
}

export function csvOf(table: Table, rows: Row[]): string {
    const columns = columnsOf(table.settings.schema);
    const head = ["picture", ...(columns.length ? columns : ["answer"]), "error"];
    const lines = rows.map((row) => {
        const values = valuesOf(row);
        const cells = columns.length ? columns.map((column) => cellText(values?.[column])) : [row.text];
        return [row.attachment.name, ...cells, row.error];
    });
    return [head, ...lines].map((line) => line.map(quoted).join(",")).join("\r\n") + "\r\n";
}

export function jsonlOf(table: Table, rows: Row[]): string {
    const wantsValues = table.settings.schema.trim() !== "";
    return rows
        .map((row) => {
            const answer = (wantsValues && valuesOf(row)) || row.text;
            return JSON.stringify({ picture: row.attachment.name, answer, ...(row.error && { error: row.error }) });
        })
        .map((line) => `${line}\n`)
        .join("");
}

/** Spreadsheets take a cell that begins with one of these for a formula: an answer must not become one. */
function quoted(cell: string): string {
    const safe = /^[=+\-@\t\r]/.test(cell) && !/^[+-]?[\d.]+$/.test(cell) ? `'${cell}` : cell;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}
