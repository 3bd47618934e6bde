// What happens while an answer is awaited.
import type { Progress } from "../chat/progress";
import { texts } from "../texts";

export function ProgressLine({ progress }: { progress: Progress }) {
    const share = progress.step === "pictures" ? progress.done / progress.total : null;
    return (
        <p class="progress">
            <span class="dot" />
            <span>{sentence(progress)}</span>
            {share !== null && <progress max={1} value={share} aria-label={sentence(progress)} />}
        </p>
    );
}

function sentence(progress: Progress): string {
    switch (progress.step) {
        case "waiting":
            return texts.progress.waiting;
        case "loading":
            return texts.progress.loading(progress.model);
        case "pictures":
            return texts.progress.pictures(progress.done + 1, progress.total);
        case "prompt":
            return texts.progress.prompt;
        case "answer": {
            const tokens = texts.progress.answer(progress.tokens);
            return progress.perSecond === null ? tokens : `${tokens}, ${texts.message.speed(progress.perSecond)}`;
        }
    }
}
