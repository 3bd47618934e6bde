// Selections of pages as the server reads them: 1-3,7. An empty one means all.

/** Return the selected pages of a document; all where the text selects none that is there. */
export function pagesOf(text: string, count: number): Set<number> {
    const pages = new Set<number>();
    for (const part of text.split(",")) {
        const range = /^\s*(\d+)?\s*(-)?\s*(\d+)?\s*$/.exec(part);
        if (!range || (!range[1] && !range[3])) continue;
        const first = Number(range[1] ?? 1);
        const last = range[2] ? Number(range[3] ?? count) : first;
        for (let page = Math.max(1, first); page <= Math.min(last, count); page++) pages.add(page);
    }
    if (!pages.size) for (let page = 1; page <= count; page++) pages.add(page);
    return pages;
}

export function selectionOf(pages: Set<number>, count: number): string {
    if (pages.size === count) return "";
    const parts: string[] = [];
    for (let page = 1; page <= count; page++) {
        if (!pages.has(page)) continue;
        let last = page;
        while (pages.has(last + 1)) last++;
        parts.push(last > page ? `${page}-${last}` : String(page));
        page = last;
    }
    return parts.join(",");
}

/** Return how many pictures a file becomes. */
export function pictureCount(file: { kind: string; pages?: string; pageCount?: number; frames?: number }): number {
    if (file.kind === "document") return pagesOf(file.pages ?? "", file.pageCount ?? 1).size;
    return file.kind === "video" ? (file.frames ?? file.pageCount ?? 1) : 1;
}
