// The message that is being written: its files, its text, and the button that sends or stops.
import { useEffect, useRef, useState } from "preact/hooks";
import { ask } from "../chat/answer";
import { current, currentRun } from "../chat/state";
import { attach, tray } from "../pictures/attach";
import { ACCEPT } from "../pictures/kinds";
import type { Attachment } from "../store/records";
import { texts } from "../texts";
import { IconButton } from "./Icon";
import { Tray } from "./Tray";
import { dialog, modelFor } from "./ui";

/** Puts a text into the message field and the cursor behind it. */
export const draft: { write: (text: string) => void } = { write: () => undefined };

export function Composer() {
    const [text, setText] = useState("");
    const field = useRef<HTMLTextAreaElement>(null);
    const picker = useRef<HTMLInputElement>(null);
    const run = currentRun.value;
    const waiting = tray.value.some((pending) => !pending.attachment && !pending.error);
    const attached = tray.value.flatMap(({ attachment }) => (attachment ? [attachment] : []));
    const model = modelFor(current.value.settings.model)?.id ?? "";

    draft.write = (words) => {
        setText(words);
        field.current!.focus();
    };
    useEffect(() => grow(field.current!), [text]);
    useEffect(() => field.current!.focus({ preventScroll: true }), [current.value.id]);

    const canSend = !run && (text.trim() !== "" || attached.length > 0 || waiting);
    // A message that was sent while its files were still on their way follows them.
    const [queued, setQueued] = useState(false);
    const send = () => {
        if (!canSend) return;
        if (waiting) return setQueued(true);
        setQueued(false);
        const attachments: Attachment[] = attached;
        if (tray.value.length > attached.length) return; // a file has failed: it is the user's turn
        tray.value = [];
        setText("");
        void ask(text.trim(), attachments);
    };
    useEffect(() => {
        if (queued && !waiting) send();
    }, [queued, waiting]);
    return (
        <form
            class="composer"
            onSubmit={(event) => {
                event.preventDefault();
                send();
            }}
        >
            <Tray model={model} />
            <div class="composer-row">
                <input
                    ref={picker}
                    class="visually-hidden"
                    type="file"
                    multiple
                    accept={ACCEPT}
                    tabIndex={-1}
                    aria-label={texts.composer.add}
                    onChange={(event) => {
                        const input = event.currentTarget;
                        void attach(input.files ?? []);
                        input.value = "";
                        field.current!.focus();
                    }}
                />
                <IconButton icon="plus" label={texts.composer.add} onClick={() => picker.current!.click()} />
                {navigator.mediaDevices && (
                    <IconButton
                        icon="camera"
                        label={texts.composer.camera}
                        onClick={() => {
                            dialog.value = { kind: "camera" };
                        }}
                    />
                )}
                <textarea
                    ref={field}
                    rows={1}
                    aria-label={texts.composer.label}
                    placeholder={attached.length ? texts.composer.placeholderWithPicture : texts.composer.placeholder}
                    value={text}
                    onInput={(event) => setText(event.currentTarget.value)}
                    onKeyDown={(event) => {
                        if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
                        event.preventDefault();
                        send();
                    }}
                />
                {run ? (
                    <IconButton
                        icon="stop"
                        class="primary"
                        label={texts.composer.stop}
                        onClick={() => run.abort.abort()}
                    />
                ) : (
                    <IconButton
                        icon="send"
                        class="primary"
                        type="submit"
                        label={texts.composer.send}
                        disabled={!canSend}
                    />
                )}
            </div>
        </form>
    );
}

/** Let a text field be as high as its text, up to a limit of the style sheet. */
export function grow(field: HTMLTextAreaElement): void {
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight}px`;
}
