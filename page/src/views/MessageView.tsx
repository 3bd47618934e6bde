// One message of a conversation, with what can be done with it.
import { memo } from "preact/compat";
import { useState } from "preact/hooks";
import { ask, goOn, retry, showVersion } from "../chat/answer";
import { currentRun, messages, versions } from "../chat/state";
import { newestLeaf } from "../chat/tree";
import type { Message } from "../store/records";
import { texts } from "../texts";
import { grow } from "./Composer";
import { Icon, IconButton } from "./Icon";
import { Markdown } from "./Markdown";
import { ProgressLine } from "./ProgressLine";
import { SeenLine } from "./SeenLine";
import { factsOf, Thumbnail } from "./Thumbnail";
import { dialog } from "./ui";

/** Drawn again when its own message changes, not with every token of another one. */
export const MessageView = memo(function MessageView({ message }: { message: Message }) {
    if (message.role === "user") return <Question message={message} />;
    const run = currentRun.value;
    return <Answer message={run?.id === message.id ? run.message.value : message} />;
});

function Question({ message }: { message: Message }) {
    const [editing, setEditing] = useState(false);
    return (
        <article class="message question" aria-label={texts.message.you}>
            {message.attachments.length > 0 && (
                <ul class="pictures">
                    {message.attachments.map((attachment, index) => (
                        <li key={index}>
                            <button
                                type="button"
                                class="picture"
                                aria-label={texts.tray.view(attachment.name)}
                                title={`${attachment.name}, ${factsOf(attachment)}`}
                                onClick={() => {
                                    dialog.value = { kind: "picture", attachment, change: null };
                                }}
                            >
                                <Thumbnail attachment={attachment} />
                            </button>
                        </li>
                    ))}
                </ul>
            )}
            {editing ? (
                <Editor message={message} onClose={() => setEditing(false)} />
            ) : (
                <>
                    {message.text && <div class="bubble">{message.text}</div>}
                    <div class="actions">
                        <Versions message={message} />
                        {!currentRun.value && (
                            <IconButton icon="edit" label={texts.message.edit} onClick={() => setEditing(true)} />
                        )}
                        <CopyButton text={message.text} />
                    </div>
                </>
            )}
        </article>
    );
}

function Editor({ message, onClose }: { message: Message; onClose: () => void }) {
    const [text, setText] = useState(message.text);
    const save = () => {
        onClose();
        void ask(text.trim(), message.attachments, message);
    };
    return (
        <form
            class="editor"
            onSubmit={(event) => {
                event.preventDefault();
                save();
            }}
        >
            <textarea
                ref={(field) => {
                    if (field && document.activeElement !== field) {
                        field.focus();
                        grow(field);
                    }
                }}
                aria-label={texts.message.editLabel}
                value={text}
                onInput={(event) => {
                    setText(event.currentTarget.value);
                    grow(event.currentTarget);
                }}
                onKeyDown={(event) => {
                    if (event.key === "Escape") onClose();
                    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
                    event.preventDefault();
                    save();
                }}
            />
            <div class="buttons">
                <button type="button" class="button" onClick={onClose}>
                    {texts.message.cancel}
                </button>
                <button type="submit" class="button primary" disabled={!text.trim() && !message.attachments.length}>
                    {texts.message.save}
                </button>
            </div>
        </form>
    );
}

function Answer({ message }: { message: Message }) {
    const running = currentRun.value?.id === message.id ? currentRun.value : null;
    const { text, thoughts, state, error } = message;
    return (
        <article class="message answer" aria-label={texts.message.model} aria-busy={running !== null}>
            {thoughts && (
                <details class="thoughts" open={running !== null && !text}>
                    <summary>{texts.message.thoughts}</summary>
                    <Markdown text={thoughts} />
                </details>
            )}
            {text && <Markdown text={text} />}
            {running && <ProgressLine progress={running.progress.value} />}
            {state === "failed" && (
                <p class="failure">
                    <Icon name="warning" /> {error}
                </p>
            )}
            {!running && (
                <>
                    {state === "cut" && <p class="note">{texts.message.cut}</p>}
                    {state === "stopped" && <p class="note">{texts.message.stopped}</p>}
                    <SeenLine message={message} />
                    <div class="actions">
                        <Versions message={message} />
                        {!currentRun.value && (
                            <IconButton icon="retry" label={texts.message.retry} onClick={() => void retry(message)} />
                        )}
                        {!currentRun.value && text && state !== "done" && (
                            <IconButton icon="goOn" label={texts.message.goOn} onClick={() => void goOn(message)} />
                        )}
                        {text && <CopyButton text={text} />}
                    </div>
                </>
            )}
        </article>
    );
}

function Versions({ message }: { message: Message }) {
    const siblings = versions.value.get(message.parent) ?? [];
    if (siblings.length < 2 || currentRun.value) return null;
    const at = siblings.findIndex((other) => other.id === message.id);
    const show = (other: Message) => void showVersion(newestLeaf(messages.value, other));
    return (
        <span class="versions">
            <IconButton
                icon="left"
                label={texts.message.previous}
                disabled={at === 0}
                onClick={() => show(siblings[at - 1]!)}
            />
            <span>{texts.message.version(at + 1, siblings.length)}</span>
            <IconButton
                icon="right"
                label={texts.message.next}
                disabled={at === siblings.length - 1}
                onClick={() => show(siblings[at + 1]!)}
            />
        </span>
    );
}

function CopyButton({ text }: { text: string }) {
    const [copied, setCopied] = useState(false);
    if (!text) return null;
    return (
        <IconButton
            icon={copied ? "check" : "copy"}
            label={copied ? texts.message.copied : texts.message.copy}
            onClick={() => {
                void navigator.clipboard?.writeText(text).then(() => {
                    setCopied(true);
                    setTimeout(() => setCopied(false), 1500);
                });
            }}
        />
    );
}
