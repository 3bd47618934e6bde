// Which of the pictures that an answer lists belongs to which file.
import type { Attachment, Message, Seen } from "../store/records";

/** Return how the files of a path were seen, by the place of each; nothing where a document's pages are not counted. */
export function seenByFile(path: Message[], seen: Seen[]): { attachment: Attachment; seen: Seen[] }[] {
  const attachments = path.flatMap((message) => message.attachments);
  const pictures = attachments.filter((attachment) => attachment.kind === "picture").length;
  const others = attachments.length - pictures;
  if (others > 1) return [];
  const pages = seen.length - pictures;
  let at = 0;
  return attachments.map((attachment) => {
    const count = attachment.kind === "picture" ? 1 : pages;
    return { attachment, seen: seen.slice(at, (at += count)) };
  });
}
