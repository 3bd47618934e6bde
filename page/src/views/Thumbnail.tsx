// A file of a message, small.
import { useThumbnail } from "../pictures/blobs";
import { pixels, sizeText } from "../pictures/format";
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
  const { kind, width, height, bytes, pages } = attachment;
  if (kind === "picture") return width && height ? `${pixels([width, height])}, ${sizeText(bytes)}` : sizeText(bytes);
  const name = kind === "document" ? texts.tray.document : texts.tray.video;
  return `${name}, ${kind === "document" ? texts.tray.pages(pages ?? "") + ", " : ""}${sizeText(bytes)}`;
}
