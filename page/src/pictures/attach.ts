// Files that were dropped, pasted or picked: each is sent to the server at once, and waits in the tray.
import { signal } from "@preact/signals";
import { texts } from "../texts";
import { dropFiles, fileOf, holdFile } from "../chat/keep";
import { seenPicture, sendFile } from "../server/api";
import { type Attachment, newId } from "../store/records";
import { kindOf } from "./kinds";
import { thumbnailOf } from "./thumbnail";

/** A file on its way into a message. `attachment` is null until the server has it. */
export interface Pending {
    key: string;
    name: string;
    attachment: Attachment | null;
    error: string;
}

export const tray = signal<Pending[]>([]);

/** Add files to the tray. Those that the server cannot read stay there with the reason. */
export async function attach(files: Iterable<File>): Promise<void> {
    await Promise.all(
        [...files].map(async (file) => {
            const pending: Pending = { key: newId(), name: file.name, attachment: null, error: "" };
            tray.value = [...tray.value, pending];
            try {
                change(pending.key, { attachment: await send(file) });
            } catch (error) {
                change(pending.key, { error: (error as Error).message });
            }
        }),
    );
}

/** Send a file to the server, hold it here, and return what stands for it in messages. */
export async function send(file: File): Promise<Attachment> {
    if (!file.size) throw new Error(texts.errors.emptyFile);
    const [picture, drawn] = await Promise.all([sendFile(file), kindOf(file) === "picture" ? thumbnailOf(file) : null]);
    const { id } = picture;
    const kind = kindOf(file) === "picture" && picture.pages > 1 && !drawn ? "document" : kindOf(file);
    // The server draws what the browser cannot: pages, frames, and TIFF.
    const thumbnail =
        drawn ??
        (await fileOf(id))?.thumbnail ??
        (await seenPicture("", { id, detail: "auto", budget: null }).then(thumbnailOf, () => null));
    await holdFile({ id, blob: file, thumbnail }); // also one that is kept: the chat that keeps it may be deleted
    return {
        id,
        name: file.name,
        kind,
        bytes: file.size,
        width: picture.width,
        height: picture.height,
        pageCount: picture.pages,
        detail: "auto",
        budget: null,
    };
}

export function change(key: string, fields: Partial<Pending>): void {
    tray.value = tray.value.map((pending) => (pending.key === key ? { ...pending, ...fields } : pending));
}

/** Take a file out of the tray; it is forgotten unless something else needs it. */
export function remove(key: string): void {
    const id = tray.value.find((pending) => pending.key === key)?.attachment?.id;
    tray.value = tray.value.filter((pending) => pending.key !== key);
    if (id && !tray.value.some((pending) => pending.attachment?.id === id)) void dropFiles(true, [id]);
}

/** Put the file `key` where the file `before` is; at the end if there is none. */
export function move(key: string, before: string | null): void {
    const moved = tray.value.find((pending) => pending.key === key);
    if (!moved || key === before) return;
    const others = tray.value.filter((pending) => pending.key !== key);
    const at = before === null ? others.length : others.findIndex((pending) => pending.key === before);
    tray.value = [...others.slice(0, at), moved, ...others.slice(at)];
}
