"""What a model, a file or an export may hold does nothing: no script runs, no request leaves, no markup is made."""

from __future__ import annotations

import json

from page.conftest import Open, Tab, chats, drawing, import_chats

HIT = "window.hit=1"
AWAY = "https://elsewhere.example"
TEXTS = [
    f"<script>{HIT}</script>",
    f"<script src={AWAY}/a.js></script>",
    f"<img src=x onerror={HIT}>",
    f"<img src={AWAY}/a.png>",
    f"![x]({AWAY}/b.png)",
    f"![x](x' onerror='{HIT})",
    f'![x" onerror="{HIT}](x)',
    f"<svg onload={HIT}></svg>",
    f"<svg><script>{HIT}</script></svg>",
    f"<svg><a xlink:href=javascript:{HIT}><text>x</text></a></svg>",
    f"<svg><animate onbegin={HIT} attributeName=x dur=1s></svg>",
    f"<math><mtext><script>{HIT}</script></mtext></math>",
    f"<math href=javascript:{HIT}>x</math>",
    f"<iframe src=javascript:{HIT}></iframe>",
    f"<iframe srcdoc='<script>parent.{HIT}</script>'></iframe>",
    f"<iframe src={AWAY}></iframe>",
    f"<object data=javascript:{HIT}></object>",
    f"<embed src={AWAY}/a.swf>",
    f"<link rel=stylesheet href={AWAY}/a.css>",
    f"<style>@import '{AWAY}/b.css'; body {{ display: none }}</style>",
    f"<p style='background:url({AWAY}/c.png);position:fixed;inset:0'>over everything</p>",
    f"<meta http-equiv=refresh content='0;url={AWAY}'>",
    f"<base href={AWAY}/>",
    f"<form action={AWAY}><input name=key><button>Key</button></form>",
    f"<form><button formaction=javascript:{HIT}>x</button></form>",
    f"<input autofocus onfocus={HIT}>",
    "<input type=password placeholder=Key>",
    f"<textarea autofocus onfocus={HIT}>x</textarea>",
    f"<select autofocus onfocus={HIT}><option>x</select>",
    f"<body onload={HIT}>",
    f"<details open ontoggle={HIT}><summary>x</summary></details>",
    f"<video src={AWAY}/a.mp4 autoplay onerror={HIT}></video>",
    f"<video><source onerror={HIT} src=x></video>",
    f"<audio src=x onerror={HIT}></audio>",
    f"<marquee onstart={HIT}>x</marquee>",
    f"<dialog open onclose={HIT}>This is the page</dialog>",
    f"<a href=javascript:{HIT}>x</a>",
    f"[x](javascript:{HIT})",
    f"[x](JaVaScRiPt:{HIT})",
    f"[x](java&#115;cript:{HIT})",
    f"[x](java\tscript:{HIT})",
    f"[x](&#x6A;avascript:{HIT})",
    f"[x](vbscript:{HIT})",
    f"[x](data:text/html,<script>{HIT}</script>)",
    f"[x]( javascript:{HIT})",
    f"<javascript:{HIT}>",
    f"[x]: javascript:{HIT}\n\n[x]",
    f'[x]({AWAY} "t\\" onmouseover=\\"{HIT}")',
    f"[x](blob:{AWAY}/1)",
    "[x](file:///etc/passwd)",
    f'<a href="{AWAY}" onclick="{HIT}" target=_self>x</a>',
    f"<div id=app onclick={HIT}>x</div>",
    "<div class='key'><form class='composer'>Message</form></div>",
    "<img name=body><a id=location name=cookie>x</a><form name=fetch></form>",
    f"<template><script>{HIT}</script></template>",
    f"<noscript><p title='</noscript><img src=x onerror={HIT}>'></noscript>",
    f"<!-- --!><img src=x onerror={HIT}> -->",
    f"<![CDATA[<img src=x onerror={HIT}>]]>",
    f"<p title='`'><img src=x onerror={HIT}>`",
    f"`</code><img src=x onerror={HIT}>`",
    f"```</pre><script>{HIT}</script>\n<img src=x onerror={HIT}>\n```",
    f'```"><img src=x onerror={HIT}>\nx\n```',
    f"| a |\n|---|\n| <img src=x onerror={HIT}> |",
    f"<table background={AWAY}/d.png><td background={AWAY}/e.png>x</table>",
    f"> <script>{HIT}</script>\n> - [ ] <img src=x onerror={HIT}>",
    f"# <img src=x onerror={HIT}>",
    f"<<script>{HIT};//<</script>",
    f"<scr<script>ipt>{HIT}</scr</script>ipt>",
    f"&lt;script&gt;{HIT}&lt;/script&gt;",
    f"\x00<script\x00>{HIT}</script>",
    f"<img/src='x'/onerror={HIT}>",
    f"<x onpointerenter={HIT} style=display:block>x</x>",
    f"<custom-element is=x onclick={HIT}></custom-element>",
    "\u202ereversed\u202c and \ufeffmarked",
    "[" * 500 + "x" + "](y)" * 500,
    "<" * 5000,
    "*" * 3000 + "x",
    "> " * 300 + "x",
]
# What Markdown needs, and what the page itself makes of it.
ALLOWED = set(
    "DIV P BR HR EM STRONG DEL CODE PRE BLOCKQUOTE UL OL LI H1 H2 H3 H4 H5 H6 A SUP SUB"
    " TABLE THEAD TBODY TR TH TD INPUT BUTTON".split()
)
INSPECT = """() => [...document.querySelectorAll(".markdown *")].map((element) => [
  element.tagName,
  element.className,
  [...element.attributes].map((one) => one.name),
  element.getAttribute("href") ?? "",
  element.getAttribute("type") ?? "",
])"""
ATTRIBUTES = {"href", "title", "start", "type", "checked", "disabled", "align", "class", "rel", "target"}
OURS = ATTRIBUTES | {"tabindex", "role", "aria-label", "aria-hidden"}  # of the boxes around code and tables


def test_texts_of_a_model(tab: Tab) -> None:
    assert len(TEXTS) >= 50
    page = tab.page
    url = page.url.partition("#")[0]
    # So many at a time that all are drawn at once.
    batches = [TEXTS[at : at + 10] for at in range(0, len(TEXTS), 10)]
    import_chats(
        tab, chats(*([turn for text in batch for turn in (("user", text), ("assistant", text))] for batch in batches))
    )
    drawn = 0
    for number in range(len(batches)):
        page.locator(".entry > button:first-child").nth(number).click()
        page.locator(".bubble").get_by_text(batches[len(batches) - 1 - number][-1][:12], exact=False).last.wait_for()
        drawn += page.locator(".answer").count()
        for tag, classes, attributes, href, kind in page.evaluate(INSPECT):
            assert tag in ALLOWED, tag
            assert set(attributes) <= OURS, (tag, attributes)
            assert set(classes.split()) <= {"block", "heading", "copyable", "scroll", "copy-button"}, classes
            assert not href or href.lower().startswith(("http://", "https://", "mailto:")), href
            assert tag != "INPUT" or kind == "checkbox"
        for link in page.locator(".markdown a[href]").all():
            assert link.get_attribute("rel") == "noopener noreferrer nofollow"
            assert link.get_attribute("target") == "_blank"
        page.locator(".thread").evaluate("box => box.scrollTo(0, 0)")
    assert drawn == len(TEXTS)
    assert page.evaluate("window.hit") is None
    assert page.url.startswith(url)
    assert page.get_by_role("textbox").last.get_attribute("aria-label") == "Message"


def test_links_that_are_defined_elsewhere(tab: Tab) -> None:
    """Only where they are used, and never in code."""
    text = f"See [The  Page].\n\nNo link.\n\n[the page]: {AWAY}/p\n\n```\nopen [the page]"
    import_chats(tab, chats([("user", "?"), ("assistant", text)]))
    tab.page.locator(".entry button").first.click()
    tab.page.locator("pre").wait_for()
    assert tab.page.locator(".markdown a").get_attribute("href") == f"{AWAY}/p"
    assert tab.page.locator("pre").inner_text().strip() == "open [the page]"
    assert AWAY not in tab.page.locator(".markdown").inner_text()


def test_names_of_files(tab: Tab) -> None:
    page = tab.page
    names = [f"<img src=x onerror={HIT}>.png", f'"><script>{HIT}</script>.png', "\u202egnp.exe", "a" * 4000 + ".png"]
    tab.give("drop", *((name, "image/png", drawing(80 + at)) for at, name in enumerate(names)))
    page.locator(".tray img").nth(len(names) - 1).wait_for()
    tab.ask("")
    page.locator(".picture").first.click()
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    assert page.evaluate("window.hit") is None
    assert page.evaluate("document.documentElement.scrollWidth") == 1200
    assert page.locator(".entry .words").inner_text().startswith("<img src=x")


def test_what_the_server_says_of_the_model(tab: Tab) -> None:
    """An answer that comes as a stream: a schema makes iota say it."""
    said = f"<img src=x onerror={HIT}><script>{HIT}</script>[x](javascript:{HIT})"
    tab.button("Settings").first.click()
    tab.page.get_by_role("radio", name="JSON Schema", exact=True).check(force=True)
    tab.page.get_by_label("JSON Schema", exact=True).last.fill(json.dumps({"const": said}))
    tab.page.keyboard.press("Escape")
    text = tab.ask("Say it")
    assert "<img src=x" in text  # shown as text
    assert tab.page.locator(".answer :is(img, script, [onerror], [href])").count() == 0
    assert tab.page.evaluate("window.hit") is None


def test_messages_in_a_circle(tab: Tab) -> None:
    export = json.loads(chats([(role, f"Text {at}") for at in range(2) for role in ("user", "assistant")]))
    messages = export["chats"][0]["messages"]
    messages[0]["parent"] = "m3"
    messages.append({**messages[1], "id": "other", "text": "Another version", "created": 0.5})
    import_chats(tab, json.dumps(export))
    tab.page.locator(".entry button").first.click()
    tab.button("Earlier version").first.click()
    tab.page.locator(".answer").get_by_text("Another version").last.wait_for()
    tab.button("Later version").first.click()  # looks for the last message below it
    tab.page.locator(".answer").get_by_text("Text 1").last.wait_for()


def test_wrong_exports(tabs: Open) -> None:
    tab = tabs()
    right = json.loads(chats([("user", "Hello"), ("assistant", "Hi")]))

    def variant(**fields: object) -> str:
        return json.dumps({**right, **fields})

    message = right["chats"][0]["messages"][0]
    attachment = {"id": "../../x", "name": "x", "kind": "picture", "bytes": 1, "detail": "auto", "budget": None}
    wrong = [
        "no JSON",
        "[]",
        "{}",
        "null",
        variant(format="other"),
        variant(version=2),
        variant(chats={}),
        variant(chats=[1]),
        variant(chats=[{**right["chats"][0], "messages": [{**message, "text": {"__html": "<b>"}}]}]),
        variant(chats=[{**right["chats"][0], "messages": [{**message, "attachments": [attachment]}]}]),
        variant(files=[{"id": "sha256:0", "type": "image/png", "base64": ""}]),
        variant(files=[{"id": "sha256:" + "0" * 64, "type": "image/png", "base64": "%"}]),
        variant(files=[{"id": "sha256:" + "0" * 64, "type": "image/png", "base64": "AAAA"}]),  # of another file
    ]
    for text in wrong:
        tab.button("Settings").first.click()
        file = {"name": "x.json", "mimeType": "application/json", "buffer": text.encode()}
        tab.page.locator('input[type=file][accept*="json"]').set_input_files(file)
        tab.page.locator(".notice").get_by_text("This file holds no chats").wait_for()
        tab.page.locator(".notice button").click()
    assert set(tab.kept().values()) == {0}
