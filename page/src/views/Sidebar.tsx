// The kept chats and tables, newest first, and a search over them.
import { useEffect, useState } from "preact/hooks";
import { deleteConversation, type Hit, open, search, startConversation } from "../chat/keep";
import { conversations, current, runs } from "../chat/state";
import type { Conversation } from "../store/records";
import { deleteTable } from "../table/delete";
import { openTable, tables } from "../table/keep";
import { texts } from "../texts";
import { Icon, IconButton } from "./Icon";
import { dialog, sidebarOpen, table } from "./ui";

const SHOWN = 60; // entries of the list; older ones are found by the search

export function Sidebar() {
    const [words, setWords] = useState("");
    const hits = useSearch(words.trim());
    const entries = hits ?? conversations.value.slice(0, SHOWN).map((conversation) => ({ conversation, excerpt: "" }));
    const show = (action: () => unknown) => {
        sidebarOpen.value = false;
        void action();
    };
    return (
        <nav class={`sidebar ${sidebarOpen.value ? "open" : ""}`} aria-label={texts.sidebar.label}>
            <header>
                <span class="brand">{texts.name}</span>
                <IconButton
                    icon="close"
                    class="only-narrow"
                    label={texts.sidebar.close}
                    onClick={() => {
                        sidebarOpen.value = false;
                    }}
                />
            </header>
            <div class="new">
                <button type="button" class="button wide" onClick={() => show(() => start(false))}>
                    <Icon name="plus" /> {texts.sidebar.newChat}
                </button>
                <IconButton icon="lock" label={texts.sidebar.newPrivate} onClick={() => show(() => start(true))} />
                <IconButton icon="table" label={texts.sidebar.newTable} onClick={() => show(() => openTable(null))} />
            </div>
            <label class="search">
                <Icon name="search" />
                <input
                    type="search"
                    placeholder={texts.sidebar.search}
                    aria-label={texts.sidebar.search}
                    value={words}
                    onInput={(event) => setWords(event.currentTarget.value)}
                />
            </label>
            <div class="entries">
                <ul aria-label={texts.sidebar.chats}>
                    {entries.map(({ conversation, excerpt }) => (
                        <Entry key={conversation.id} conversation={conversation} excerpt={excerpt} show={show} />
                    ))}
                </ul>
                {!entries.length && <p class="none">{hits ? texts.sidebar.noHits : texts.sidebar.none}</p>}
                {!hits && tables.value.length > 0 && (
                    <>
                        <h2>{texts.sidebar.tables}</h2>
                        <ul aria-label={texts.sidebar.tables}>
                            {tables.value.map((one) => {
                                const title = one.title || texts.table.untitled;
                                return (
                                    <li key={one.id} class={table.value?.id === one.id ? "entry current" : "entry"}>
                                        <button type="button" onClick={() => show(() => openTable(one))}>
                                            <span class="title">
                                                <span class="words">{title}</span>
                                            </span>
                                        </button>
                                        <IconButton
                                            icon="trash"
                                            label={texts.sidebar.delete(title)}
                                            onClick={() =>
                                                confirm(texts.sidebar.confirmDeleteTable) && void deleteTable(one)
                                            }
                                        />
                                    </li>
                                );
                            })}
                        </ul>
                    </>
                )}
            </div>
            <footer>
                <button
                    type="button"
                    class="button quiet wide"
                    onClick={() =>
                        show(() => {
                            dialog.value = { kind: "settings" };
                        })
                    }
                >
                    <Icon name="settings" /> {texts.settings.open}
                </button>
            </footer>
        </nav>
    );
}

interface EntryProps {
    conversation: Conversation;
    excerpt: string;
    show: (action: () => unknown) => void;
}

function Entry({ conversation, excerpt, show }: EntryProps) {
    const isCurrent = !table.value && current.value.id === conversation.id;
    const title = conversation.title || texts.untitled;
    return (
        <li class={isCurrent ? "entry current" : "entry"}>
            <button
                type="button"
                aria-current={isCurrent ? "page" : undefined}
                onClick={() =>
                    show(() => {
                        table.value = null;
                        return open(conversation, true);
                    })
                }
            >
                <span class="title">
                    {conversation.isPrivate && <Icon name="lock" />}
                    {runs.value.has(conversation.id) && <span class="dot" />}
                    <span class="words">{title}</span>
                </span>
                {excerpt && <span class="excerpt">{excerpt}</span>}
            </button>
            <IconButton
                icon="trash"
                label={texts.sidebar.delete(title)}
                onClick={() => confirm(texts.sidebar.confirmDelete) && void deleteConversation(conversation)}
            />
        </li>
    );
}

function start(isPrivate: boolean): void {
    table.value = null;
    startConversation(isPrivate);
}

/** Return the matches; null while nothing is searched. */
function useSearch(words: string): Hit[] | null {
    const [hits, setHits] = useState<Hit[] | null>(null);
    useEffect(() => {
        if (!words) return setHits(null);
        let wanted = true;
        const timer = setTimeout(() => void search(words).then((matches) => wanted && setHits(matches)), 120);
        return () => {
            wanted = false;
            clearTimeout(timer);
        };
    }, [words, conversations.value]);
    return hits;
}
