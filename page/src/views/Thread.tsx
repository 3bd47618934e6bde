// The messages of the open conversation: the last ones first, earlier ones when they are scrolled to.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { current, currentRun, path } from "../chat/state";
import { attach } from "../pictures/attach";
import { texts } from "../texts";
import { draft } from "./Composer";
import { MessageView } from "./MessageView";

const FIRST = 24; // messages that are drawn at once: more than a screen has
const STEP = 10; // more of them, when they are scrolled to: few enough for one frame
const NEAR = 80; // pixels from the end within which the view follows a growing answer

export function Thread() {
    const [shown, setShown] = useState(FIRST);
    const scroller = useRef<HTMLDivElement>(null);
    const top = useRef<HTMLButtonElement>(null);
    const follows = useRef(true);
    const all = path.value;
    const { id } = current.value;
    const text = currentRun.value?.message.value.text;
    const first = Math.max(0, all.length - shown);

    useLayoutEffect(() => {
        follows.current = true;
        setShown(FIRST);
    }, [id]);
    useLayoutEffect(() => {
        follows.current = true; // one's own message is wanted in view
    }, [all.length, id]);
    useLayoutEffect(() => {
        const box = scroller.current!;
        if (follows.current) box.scrollTop = box.scrollHeight;
    }, [all.length, id, text, currentRun.value?.progress.value]);
    useEffect(() => {
        if (!top.current) return;
        const observer = new IntersectionObserver(
            ([entry]) => entry!.isIntersecting && setShown((count) => count + STEP),
            { root: scroller.current, rootMargin: "600px 0px 0px 0px" },
        );
        observer.observe(top.current);
        return () => observer.disconnect();
    }, [first, id]);

    return (
        <div
            class="thread"
            ref={scroller}
            onScroll={({ currentTarget: box }) => {
                follows.current = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR;
            }}
        >
            {all.length === 0 ? (
                <Empty />
            ) : (
                <div class="column">
                    {first > 0 && (
                        <button
                            ref={top}
                            type="button"
                            class="link earlier"
                            onClick={() => setShown((count) => count + STEP)}
                        >
                            {texts.message.earlier}
                        </button>
                    )}
                    {all.slice(first).map((message) => (
                        <MessageView key={message.id} message={message} />
                    ))}
                </div>
            )}
        </div>
    );
}

function Empty() {
    const tryIt = async () => {
        const blob = await (await fetch("page/sample.png")).blob();
        void attach([new File([blob], "sample.png", { type: "image/png" })]);
        draft.write(texts.empty.sampleQuestion);
    };
    return (
        <div class="empty">
            <button type="button" class="sample" onClick={() => void tryIt()} aria-label={texts.empty.sample}>
                <img src="page/sample.png" alt="" width={320} height={240} />
            </button>
            <h1>{texts.empty.title}</h1>
            <p>{texts.empty.lead}</p>
            {current.value.isPrivate && <p class="private-note">{texts.empty.private}</p>}
        </div>
    );
}
