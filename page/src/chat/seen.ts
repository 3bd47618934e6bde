// Which of the pictures that an answer lists belongs to which file.
import { pictureCount } from "../pictures/pages";
import type { Attachment, Message, Seen } from "../store/records";

/** Return how the files of a path were seen, by the place of each; nothing where the counts differ. */
export function seenByFile(path: Message[], seen: Seen[]): { attachment: Attachment; seen: Seen[] }[] {
    const attachments = path.flatMap((message) => message.attachments);
    let at = 0;
    const files = attachments.map((attachment) => ({
        attachment,
        seen: seen.slice(at, (at += pictureCount(attachment))),
    }));
    return at === seen.length ? files : [];
}
