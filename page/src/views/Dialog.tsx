// A modal dialog: the browser's own, which traps the focus and closes with Escape.
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { IconButton } from "./Icon";

interface Props {
    title: string;
    closeLabel: string;
    onClose: () => void;
    class?: string;
    children: ComponentChildren;
}

export function Dialog({ title, closeLabel, onClose, class: more, children }: Props) {
    const ref = useRef<HTMLDialogElement>(null);
    useEffect(() => {
        const dialog = ref.current!;
        const before = document.activeElement;
        dialog.showModal();
        return () => {
            dialog.close();
            if (before instanceof HTMLElement) before.focus();
        };
    }, []);
    return (
        <dialog
            ref={ref}
            class={`dialog ${more ?? ""}`}
            aria-label={title}
            onCancel={(event) => {
                event.preventDefault();
                onClose();
            }}
            onClick={(event) => event.target === ref.current && onClose()}
        >
            <div class="dialog-body">
                <header class="dialog-head">
                    <h2>{title}</h2>
                    <IconButton icon="close" label={closeLabel} onClick={onClose} />
                </header>
                {children}
            </div>
        </dialog>
    );
}
