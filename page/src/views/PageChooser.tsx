// The pages of a document as the model sees them, to choose from.
import { useEffect, useRef, useState } from "preact/hooks";
import { useBlobUrl } from "../pictures/blobs";
import { pagesOf, selectionOf } from "../pictures/pages";
import { withFiles } from "../pictures/resend";
import { seenPicture } from "../server/api";
import type { Attachment } from "../store/records";
import { texts } from "../texts";

interface Props {
    attachment: Attachment;
    model: string;
    /** Null where the message was sent already. */
    onChange: ((pages: string) => void) | null;
}

export function PageChooser({ attachment, model, onChange }: Props) {
    const count = attachment.pageCount ?? 1;
    const chosen = pagesOf(attachment.pages ?? "", count);
    const toggle = (page: number) => {
        const next = new Set(chosen);
        if (!next.delete(page)) next.add(page);
        if (next.size) onChange!(selectionOf(next, count));
    };
    return (
        <ul class="pages-grid" aria-label={texts.pages.label}>
            {Array.from({ length: count }, (_, at) => at + 1).map((page) => (
                <li key={page} class={chosen.has(page) ? "chosen" : ""}>
                    <label>
                        <PageImage attachment={attachment} model={model} page={page} />
                        <span>
                            <input
                                type="checkbox"
                                checked={chosen.has(page)}
                                disabled={!onChange}
                                aria-label={texts.pages.page(page)}
                                onChange={() => toggle(page)}
                            />
                            {page}
                        </span>
                    </label>
                </li>
            ))}
        </ul>
    );
}

/** Drawn when it comes into view: a document may have hundreds. */
function PageImage({ attachment, model, page }: { attachment: Attachment; model: string; page: number }) {
    const box = useRef<HTMLSpanElement>(null);
    const [blob, setBlob] = useState<Blob | null>(null);
    const { id, detail, budget, width, height } = attachment;
    useEffect(() => {
        const abort = new AbortController();
        const observer = new IntersectionObserver(([entry]) => {
            if (!entry!.isIntersecting) return;
            observer.disconnect();
            const draw = () => seenPicture(model, attachment, page, abort.signal);
            withFiles([id], abort.signal, draw).then(setBlob, () => undefined);
        });
        observer.observe(box.current!);
        return () => {
            observer.disconnect();
            abort.abort();
        };
    }, [id, model, page, detail, budget]);
    const url = useBlobUrl(blob);
    const ratio = width && height ? `${width} / ${height}` : "3 / 4";
    return (
        <span ref={box} class={`page-image ${url ? "" : "pulse"}`} style={{ aspectRatio: ratio }}>
            {url && <img src={url} alt={texts.pages.page(page)} />}
        </span>
    );
}
