// Line icons, 24 units wide.

const PATHS = {
    plus: "M12 5v14M5 12h14",
    close: "M6 6l12 12M18 6L6 18",
    menu: "M4 7h16M4 12h16M4 17h10",
    send: "M12 19V5M6 11l6-6 6 6",
    stop: "M7 7h10v10H7z",
    camera: "M4 8h3l2-3h6l2 3h3v11H4zM12 16.5a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7z",
    copy: "M9 9h10v10H9zM5 15V5h10",
    check: "M5 13l4 4L19 7",
    retry: "M20 12a8 8 0 1 1-2.5-5.8M20 4v5h-5",
    edit: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
    goOn: "M5 12h13M13 7l5 5-5 5",
    left: "M15 5l-7 7 7 7",
    right: "M9 5l7 7-7 7",
    trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
    lock: "M6 11h12v9H6zM8.5 11V8a3.5 3.5 0 0 1 7 0v3",
    settings:
        "M4 7h9M17 7h3M4 17h3M11 17h9M15 9.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5zM9 19.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5z",
    table: "M4 5h16v14H4zM4 10h16M4 14.5h16M10 5v14",
    chat: "M4 5h16v11H10l-4 4v-4H4z",
    file: "M7 3h7l4 4v14H7zM14 3v4h4",
    film: "M4 5h16v14H4zM8 5v14M16 5v14M4 9.5h4M4 14.5h4M16 9.5h4M16 14.5h4",
    warning: "M12 4l9 16H3zM12 10v4M12 17v.5",
    picture: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.5 9.5h.01",
    search: "M10.5 17a6.5 6.5 0 1 0 0-13 6.5 6.5 0 0 0 0 13zM15.5 15.5L20 20",
    download: "M12 4v11M7 11l5 5 5-5M5 20h14",
};

export type IconName = keyof typeof PATHS;

export function Icon({ name }: { name: IconName }) {
    return (
        <svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false">
            <path d={PATHS[name]} />
        </svg>
    );
}

interface ButtonProps {
    icon: IconName;
    label: string;
    onClick?: () => void;
    disabled?: boolean;
    class?: string;
    type?: "button" | "submit";
    pressed?: boolean;
}

/** A button that shows an icon alone; its label is for screen readers and as a tooltip. */
export function IconButton({ icon, label, onClick, disabled, class: more, type = "button", pressed }: ButtonProps) {
    return (
        <button
            type={type}
            class={`icon-button ${more ?? ""}`}
            aria-label={label}
            title={label}
            aria-pressed={pressed}
            disabled={disabled}
            onClick={onClick}
        >
            <Icon name={icon} />
        </button>
    );
}
