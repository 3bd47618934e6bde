// What the server is doing with a request, from the comments and chunks of its stream.

export type Progress =
    | { step: "waiting" }
    | { step: "loading"; model: string }
    | { step: "pictures"; done: number; total: number }
    | { step: "prompt" }
    | { step: "answer"; tokens: number; perSecond: number | null };

/** Return the progress after a comment of the stream. The wording is the server's: docs/server.md. */
export function afterComment(before: Progress, comment: string): Progress {
    const encoding = /^encoding (\d+)\/(\d+)$/.exec(comment);
    if (encoding) return { step: "pictures", done: Number(encoding[1]), total: Number(encoding[2]) };
    if (comment.startsWith("loading ")) return { step: "loading", model: comment.slice(8) };
    if (comment === "queued") return { step: "waiting" };
    // The server says "working" for everything between; while pictures are read, that is known better already.
    if (comment === "working" && before.step !== "pictures" && before.step !== "answer") return { step: "prompt" };
    return before;
}

/** Counts pieces of the answer, of which each is about a token. */
export class Speedometer {
    private began = 0;
    private pieces = 0;

    count(): Progress {
        const now = performance.now();
        if (!this.pieces++) this.began = now;
        const seconds = (now - this.began) / 1000;
        const perSecond = seconds > 0.3 ? (this.pieces - 1) / seconds : null;
        return { step: "answer", tokens: this.pieces, perSecond };
    }
}
