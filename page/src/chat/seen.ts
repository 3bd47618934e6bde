// Which of the pictures that an answer lists belongs to which file.
import { pictureCount } from "../pictures/pages";
import type { Attachment, Message, Seen } from "../store/records";

/**
 * Return how the files of a path were seen, without those whose place in the list is not certain.
 *
 * A video has one entry where the model sees it as one, and fewer than were asked for where it has fewer frames.
 */
export function seenByFile(path: Message[], seen: Seen[]): { attachment: Attachment; seen: Seen[] }[] {
    const attachments = path.flatMap((message) => message.attachments);
    const most = sumsBefore(attachments.map(pictureCount));
    const least = sumsBefore(attachments.map((one) => (one.kind === "video" ? 1 : pictureCount(one))));
    const after = (sums: number[], at: number) => sums.at(-1)! - sums[at]!;
    const places = most.map((_, at) => {
        const first = Math.max(least[at]!, seen.length - after(most, at));
        const last = Math.min(most[at]!, seen.length - after(least, at));
        return first === last ? first : null;
    });
    return attachments.flatMap((attachment, at) => {
        const [begin, end] = [places[at]!, places[at + 1]!];
        return begin === null || end === null ? [] : [{ attachment, seen: seen.slice(begin, end) }];
    });
}

/** Return the sums of what comes before each of the numbers, then the sum of all. */
function sumsBefore(numbers: number[]): number[] {
    const sums = [0];
    for (const one of numbers) sums.push(sums.at(-1)! + one);
    return sums;
}
