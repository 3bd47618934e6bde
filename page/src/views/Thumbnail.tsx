// A file of a message, small.
import { useThumbnail } from "../pictures/blobs";
import { pixels, sizeText } from "../pictures/format";
import { pictureCount } from "../pictures/pages";
import type { Attachment } from "../store/records";
import { texts } from "../texts";
import { Icon } from "./Icon";

export function Thumbnail({ attachment }: { attachment: Attachment }) {
    const url = useThumbnail(attachment.id);
    if (url) return <img class="thumbnail" src={url} alt={attachment.name} draggable={false} />;
    return (
        <span class="thumbnail placeholder">
            <Icon name={attachment.kind === "document" ? "file" : attachment.kind === "video" ? "film" : "picture"} />
            <span class="name">{attachment.name}</span>
        </span>
    );
}

/** A line such as "4000×3000, 2.3 MB". */
export function factsOf(attachment: Attachment): string {
    const { kind, width, height, bytes, pageCount = 1 } = attachment;
    if (kind === "picture") return width && height ? `${pixels([width, height])}, ${sizeText(bytes)}` : sizeText(bytes);
    const pictures = pictureCount(attachment);
    const shown = kind === "document" ? texts.pages.chosen(pictures, pageCount) : texts.pages.frames(pictures);
    return `${shown}, ${sizeText(bytes)}`;
}
