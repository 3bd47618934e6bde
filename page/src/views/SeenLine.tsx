// Below an answer: how its pictures were seen, and what it took.
import { useMemo } from "preact/hooks";
import { messages } from "../chat/state";
import { seenByFile } from "../chat/seen";
import { pathTo } from "../chat/tree";
import { seconds } from "../pictures/format";
import type { Message, Seen } from "../store/records";
import { texts } from "../texts";
import { dialog } from "./ui";

const SHOWN = 3; // pictures
const LONG_ENOUGH = 8; // tokens, of which a speed means something

export function SeenLine({ message }: { message: Message }) {
    const { figures } = message;
    const own = useMemo(() => ownOf(message), [message]);
    const more = own.length - SHOWN;
    if (!own.length && !figures) return null;
    return (
        <p class="seen-line">
            {own.slice(0, SHOWN).flatMap(({ attachment, seen: its }) =>
                its.slice(0, 1).map((one, index) => (
                    <button
                        key={`${attachment.id}-${index}`}
                        type="button"
                        class="link"
                        onClick={() => {
                            dialog.value = { kind: "picture", attachment, change: null };
                        }}
                    >
                        {its.length > 1 ? texts.seen.several(its.length, lineOf(one)) : lineOf(one)}
                    </button>
                )),
            )}
            {more > 0 && <span>{texts.seen.more(more)}</span>}
            {figures?.tokensPerSecond != null && figures.answerTokens >= LONG_ENOUGH && (
                <span
                    title={texts.message.details(
                        figures.promptTokens,
                        figures.cachedTokens,
                        figures.answerTokens,
                        seconds(figures.waitMs + figures.promptMs),
                    )}
                >
                    {texts.message.speed(figures.tokensPerSecond)}
                </span>
            )}
        </p>
    );
}

/** Return how the files of the question before an answer were seen. */
function ownOf({ parent, seen }: Message) {
    if (!seen?.length) return [];
    const path = pathTo(messages.peek(), parent);
    return seenByFile(path, seen).filter(({ attachment }) => path.at(-1)?.attachments.includes(attachment));
}

function lineOf(seen: Seen): string {
    const cached = texts.seen.cached[seen.cache as keyof typeof texts.seen.cached] ?? "";
    const parts = [texts.seen.line(seen.used_size, seen.original_size), texts.seen.tiles(seen.tiles), cached];
    return parts.filter(Boolean).join(", ");
}
