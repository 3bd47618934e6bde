// Addresses of kept files for <img>, made once for each file.
import { useEffect, useState } from "preact/hooks";
import { fileOf } from "../chat/keep";

const urls = new Map<string, Promise<string | null>>();

/** Return the address of a file's small picture; null where there is none. */
export function thumbnailUrl(id: string): Promise<string | null> {
    let url = urls.get(id);
    if (!url) {
        url = fileOf(id).then((file) => (file?.thumbnail ? URL.createObjectURL(file.thumbnail) : null));
        urls.set(id, url);
        void url.then((made) => made ?? urls.delete(id)); // the file may come later
    }
    return url;
}

export function useThumbnail(id: string): string | null {
    const [url, setUrl] = useState<string | null>(null);
    useEffect(() => {
        let wanted = true;
        void thumbnailUrl(id).then((kept) => wanted && setUrl(kept));
        return () => {
            wanted = false;
        };
    }, [id]);
    return url;
}

/** Return an address of a blob for as long as the view shows it. */
export function useBlobUrl(blob: Blob | null): string | null {
    const [url, setUrl] = useState<string | null>(null);
    useEffect(() => {
        if (!blob) return setUrl(null);
        const made = URL.createObjectURL(blob);
        setUrl(made);
        return () => URL.revokeObjectURL(made);
    }, [blob]);
    return url;
}
