// The files of the message that is being written.
import { useState } from "preact/hooks";
import { change, move, type Pending, remove, tray } from "../pictures/attach";
import { usePlan } from "../pictures/cost";
import { pictureCount } from "../pictures/pages";
import type { Attachment } from "../store/records";
import { texts } from "../texts";
import { Icon, IconButton } from "./Icon";
import { factsOf, Thumbnail } from "./Thumbnail";
import { dialog } from "./ui";

const DRAGGED = "application/x-pocketvlm-file";

export function Tray({ model }: { model: string }) {
    if (!tray.value.length) return null;
    return (
        <ul class="tray" aria-label={texts.tray.label}>
            {tray.value.map((pending) => (
                <Item key={pending.key} pending={pending} model={model} />
            ))}
        </ul>
    );
}

function Item({ pending, model }: { pending: Pending; model: string }) {
    const { key, name, attachment, error } = pending;
    const [target, setTarget] = useState(false);
    const keys = tray.value.map((other) => other.key);
    const at = keys.indexOf(key);
    return (
        <li
            class={`tray-item ${error ? "failed" : ""} ${target ? "target" : ""}`}
            draggable
            onDragStart={(event) => event.dataTransfer!.setData(DRAGGED, key)}
            onDragOver={(event) => {
                if (!event.dataTransfer!.types.includes(DRAGGED)) return;
                event.preventDefault();
                setTarget(true);
            }}
            onDragLeave={() => setTarget(false)}
            onDrop={(event) => {
                const moved = event.dataTransfer!.getData(DRAGGED);
                setTarget(false);
                if (!moved) return;
                event.preventDefault();
                event.stopPropagation();
                move(moved, keys.indexOf(moved) < at ? (keys[at + 1] ?? null) : key);
            }}
        >
            {attachment ? (
                <Attached
                    attachment={attachment}
                    model={model}
                    onChange={(next) => change(key, { attachment: next })}
                />
            ) : (
                <Waiting name={name} error={error} />
            )}
            <span class="tray-actions">
                {keys.length > 1 && at > 0 && (
                    <IconButton
                        class="move"
                        icon="left"
                        label={texts.tray.earlier(name)}
                        onClick={() => move(key, keys[at - 1]!)}
                    />
                )}
                {keys.length > 1 && at < keys.length - 1 && (
                    <IconButton
                        class="move"
                        icon="right"
                        label={texts.tray.later(name)}
                        onClick={() => move(key, keys[at + 2] ?? null)}
                    />
                )}
                <IconButton icon="close" label={texts.tray.remove(name)} onClick={() => remove(key)} />
            </span>
        </li>
    );
}

interface AttachedProps {
    attachment: Attachment;
    model: string;
    onChange: (attachment: Attachment) => void;
}

function Attached({ attachment, model, onChange }: AttachedProps) {
    const { plan } = usePlan(model, attachment);
    return (
        <>
            <button
                type="button"
                class="tray-picture"
                aria-label={texts.tray.view(attachment.name)}
                onClick={() => {
                    dialog.value = { kind: "picture", attachment, change: onChange };
                }}
            >
                <Thumbnail attachment={attachment} />
            </button>
            <span class="tray-name" title={attachment.name}>
                {attachment.name}
            </span>
            <span class="tray-facts">
                {factsOf(attachment)}
                {plan && (
                    <span class="cost">
                        {" "}
                        · {texts.seen.tokens(plan.tokens * pictureCount(attachment), attachment.kind)}
                    </span>
                )}
            </span>
        </>
    );
}

function Waiting({ name, error }: { name: string; error: string }) {
    return (
        <>
            <span class={`tray-picture thumbnail placeholder ${error ? "" : "pulse"}`}>
                <Icon name={error ? "warning" : "picture"} />
            </span>
            <span class="tray-name" title={name}>
                {name}
            </span>
            <span class="tray-facts" role={error ? "alert" : undefined}>
                {error || texts.tray.sending}
            </span>
        </>
    );
}
