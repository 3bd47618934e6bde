// From the model's Markdown to harmless elements: parsed by marked, and cleaned by DOMPurify of all but what a text needs.
import DOMPurify from "dompurify";
import { Marked, type Links } from "marked";
import { texts } from "../texts";

const TAGS = [
    ..."p br hr em strong del code pre blockquote ul ol li h1 h2 h3 h4 h5 h6 a sup sub".split(" "),
    ..."table thead tbody tr th td input".split(" "),
];
const LABEL = /\[([^[\]]+)\]/g; // of a link that is defined elsewhere
const HEADINGS = /^H[1-6]$/;
// Tags that models write into Markdown, without attributes. Other HTML is shown as what it is: text.
const PLAIN_TAG = /^<\/?(?:br|sub|sup|em|strong|del|code)\s*\/?>$/i;

const marked = new Marked({
    async: false,
    gfm: true,
    breaks: true,
    renderer: {
        html: ({ text }) => (PLAIN_TAG.test(text.trim()) ? text : escaped(text)),
        image: ({ text, href }) => escaped(text || href), // a model has none, and others are not fetched
    },
});

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
    if (node.tagName === "A") {
        node.setAttribute("rel", "noopener noreferrer nofollow");
        node.setAttribute("target", "_blank");
    }
    // Markdown's task lists; any other field could pretend to be a part of the page.
    if (node.tagName === "INPUT") {
        if (node.getAttribute("type") === "checkbox") node.setAttribute("disabled", "");
        else node.remove();
    }
});

/** Split Markdown into blocks, of which only the last one changes while a text grows. */
export function blocksOf(text: string): string[] {
    const tokens = marked.lexer(text);
    const blocks = tokens.filter(({ type }) => type !== "space" && type !== "def");
    return blocks.map(({ raw }) => definitionsFor(raw, tokens.links) + raw);
}

/** Return the definitions of the links in a block, which may be in other blocks. In front: a fence may be open. */
function definitionsFor(raw: string, links: Links): string {
    const labels = new Set(Array.from(raw.matchAll(LABEL), ([, label]) => label!.toLowerCase().replace(/\s+/g, " ")));
    const definitions = [...labels].map((label) => {
        const link = links[label];
        if (!link) return "";
        const title = link.title ? ` "${link.title.replaceAll('"', "&quot;")}"` : "";
        return `[${label}]: <${link.href}>${title}\n\n`;
    });
    return definitions.join("");
}

/** Return the elements of one block of Markdown. */
export function elementsOf(block: string): DocumentFragment {
    const html = marked.parse(block) as string;
    const fragment = DOMPurify.sanitize(html, {
        ALLOWED_TAGS: TAGS,
        ALLOWED_ATTR: ["href", "title", "start", "type", "checked", "disabled", "align", "class"],
        ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
        ADD_URI_SAFE_ATTR: ["type", "start", "checked", "disabled", "align"],
        ALLOW_DATA_ATTR: false,
        ALLOW_ARIA_ATTR: false,
        RETURN_DOM_FRAGMENT: true,
    });
    for (const element of fragment.querySelectorAll("*")) tidy(element);
    return fragment;
}

function escaped(text: string): string {
    return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
}

function tidy(element: Element): void {
    const language = element.tagName === "CODE" && /^language-([\w+#.-]{1,32})/.exec(element.className);
    element.removeAttribute("class"); // of the page's own style, or of nothing
    if (language) element.setAttribute("title", language[1]!);
    if (HEADINGS.test(element.tagName)) element.classList.add("heading");
    if (element.tagName === "INPUT") element.setAttribute("aria-hidden", "true");
    if (element.tagName === "PRE") wrap(element, texts.message.copyCode, () => element.textContent ?? "");
    if (element.tagName === "TABLE") wrap(element, texts.message.copyTable, () => tableText(element));
}

/** Put an element into a box that scrolls, with a button that copies it. */
function wrap(element: Element, label: string, text: () => string): void {
    const box = document.createElement("div");
    const scroll = document.createElement("div");
    const button = document.createElement("button");
    box.className = "copyable";
    scroll.className = "scroll";
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", element.tagName === "PRE" ? texts.message.code : texts.message.table);
    button.type = "button";
    button.className = "copy-button";
    button.textContent = texts.message.copy;
    button.setAttribute("aria-label", label);
    button.addEventListener("click", () => {
        void navigator.clipboard?.writeText(text()).then(() => {
            button.textContent = texts.message.copied;
            setTimeout(() => (button.textContent = texts.message.copy), 1500);
        });
    });
    element.replaceWith(box);
    scroll.append(element);
    box.append(scroll, button);
}

function tableText(table: Element): string {
    const rows = [...table.querySelectorAll("tr")];
    return rows.map((row) => [...row.children].map((cell) => cell.textContent?.trim()).join("\t")).join("\n");
}
