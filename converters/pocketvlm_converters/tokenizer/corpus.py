"""Texts on which a vocabulary is compared with its original: scripts, code, numbers, spaces, random mixtures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "What is in the picture? Two red circles, one blue square; nothing else!",
    "I'm, you're, he's, we've, they'll, I'd, isn't. I'M, YOU'RE, HE'S, WE'VE, THEY'LL, I'D. don’t ‘quoted’",
    "''s 's' 'tis 'T 've'll 'dd 'SS rock'n'roll O'Reilly's",
    "0 1 12 123 1234 12345 123456789 3.14159 1,000,000 1e-5 0x1F 50% $9.99 2026-03-01T12:34:56Z +49 (0)30 12 34",
    "a1b22c333 4four five5 6 7  8   9 10th 2nd x² H₂O ½ ¾ Ⅷ ① ٣٤٥ १२३ ๑๒๓ 一二三",
    "  two  three   four    five     and trailing   ",
    "\ttab\t\ttabs \t mixed\t \n\n\n  lines \r\n windows\r\n\r\n old mac\r end\n",
    "\n", "\n\n", "\n\n\n", " ", "  ", "   ", " \n", "\n ", " \n \n ", "\t", "\t\t\n", "\r\n",
    "", "x", " x", "x ", "\n\nx",
    "def f(x: int) -> str:\n    if x != 0 and x >= -1:\n        return f\"{x:>8}\"  # why\n\treturn None\n",
    "for (int i = 0; i < n; ++i) { a[i] |= b->c[i] << 2; } // done\n/* */ #include <stdio.h>\n",
    "<div class=\"a-b\">&amp;</div> {\"key\": [1, 2.5, null, true]} SELECT * FROM t WHERE a='b'; $HOME/.cache ~/x\\n",
    "https://example.org/a?b=c&d=%20#e user.name+tag@example.com C:\\Windows\\System32 ../../etc/passwd",
    "!!! ??? ... --- ___ *** ### @@@ ~~~ ``` |||| ==== ++++ <<<>>> (((()))) [[]] {{}} ^^ && %% «» „“ – — … ·",
    "snake_case camelCase PascalCase SCREAMING_SNAKE kebab-case dot.case ALLCAPS iPhone McDonald's XMLHttpRequest",
    "Der Fuß des Überflüssigen grüßt die Straße. Élève à Noël, garçon naïf. ¿Qué? ¡Año! São João. Łódź, żółć, čeština.",
    "Đây là tiếng Việt có nhiều dấu. Türkçe: İstanbul ığüşöç. Íslenska þð. Ελληνικά: γειά σου Κόσμε. Հայերեն. ქართული.",
    "Русский текст, Ёлка; українська їжа, ґанок. Български. Српски. Монгол хэл.",
    "中文分词测试：今天天气很好，我们去公园吧！繁體字測試。日本語のテスト、ひらがなとカタカナ。",
    "한국어 띄어쓰기 시험입니다.",
    "العربية: مرحبا بالعالم، كيف الحال؟ فارسی: سلام دنیا. اردو ۔ עברית: שלום עולם.",
    "हिन्दी में पाठ। বাংলা লেখা। தமிழ் உரை. తెలుగు. ಕನ್ನಡ. മലയാളം. ગુજરાતી. ਪੰਜਾਬੀ. සිංහල. ภาษาไทยไม่มีช่องว่าง ລາວ ខ្មែរ မြန်မာ བོད་ཡིག",
    "አማርኛ ᏣᎳᎩ ᐃᓄᒃᑎᑐᑦ ⵜⵉⴼⵉⵏⴰⵖ Yorùbá ẹ̀kọ́ Hawaiʻi ʻōlelo",
    "😀 😂👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇯🇵 ❤️ ☎️ ✔ ★ → ⇒ ∑∫√∞≈≠≤ αβγ ℝ ∀x∈X 🤖🧠 1️⃣2️⃣",
    "e\u0301 o\u0308 n\u0303 \u0041\u030a ﬁ ﬂ Ⅳ ㎏ ｆｕｌｌ　ｗｉｄｔｈ Ａ１",
    "zero\u200bwidth soft\u00adhyphen nb\u00a0space thin\u2009space ideographic\u3000space line\u2028sep \ufeffbom",
    "<s> </s> <unk> <pad> <PAD> <eos> [EOS] [EOT] <EOT> <mask> [INST] <|end|> <image> <|image|>",
    "<row_1_col_1> <global-img> <row_1_col_1", "<0x0A> <0xFF> a<0x41>b <0x0a>", "[PAD1] [PAD99999] </s </s> <s>x</s>",
    "\u1112\u1161\u11ab\u1100\u116e\u11a8 \u3131\u314f \u1112 \u1161\u11ab ガ \u30ab\u3099 \u212b \u2126 \u037e \u1fef",
    "a\u0323\u0301 a\u0301\u0323 \u0301 x\n\u0308 ṩ s\u0307\u0323 q\u0307\u0323 \u0344 \u0f73 1\u0301 \u0958",
    "nul\0in \x01\x02\x07\x08\x0b\x0c\x1b[0m\x1c\x1d\x1e\x1f\x7f \x80\x85\x9f end", "\0", "\x85", "\x0b\x0c \x0b",
    "𐍈 𒀀 𓂀 𝒜𝓑 ꙮ ﷽ ‱ ⁂ ℵ \U0001f9ff \U0010ffff \ue000 \ufffd \ufffe 𞤀 ߊ ⠓⠑ ㋿ \U000e0041 \u180e \u2060 \u202eabc\u202c",
    "\u2581 a\u2581b \u2581x", "\u2581\u2581 a \u2581\u2581", "ǅ ᾼ ʰ ˢᵗ ª º Ⅻ ² ٠ ० 〇 ൰ 𝟘 ⒈ 🄁 a̲ x⃝ ß ẞ ſ ŉ Ǆ",
    "pneumonoultramicroscopicsilicovolcanoconiosis" * 8, "Flußdampfschifffahrtskapitän" * 5, "的一是不了人我在有" * 40,
    "ACGT" * 100, "0123456789abcdef" * 40, "_" * 90, "-" * 33 + "\n" + "*" * 65, "\t" * 35, "\r\n" * 20, " \t" * 20,
    "x  \n  y\n   \n\tz \n\n\n w   ", "a\n b\n  c\n   d", "if a:\n    b\n\n\n    c\n        d\n", "(a) [b] {c} `f`",
    "User: Read the number.\nAssistant: 407\n\nUser: and the word?\nAssistant: harbour<end_of_utterance>\n",
    "a" * 100, " " * 70, "\n" * 40, "9" * 40, "ab " * 50, "=" * 80, "é" * 30, "字" * 30, "😀" * 10, "'s" * 20,
)  # fmt: skip

_PIECES = (
    *"aZéßжΩ字あ한ع1９٣½² \t\n'\"-_.,!?/\\<>|{}#😀\u00a0\u0301\u200d\u3000", "  ", "   ", "\r\n", "\n\n",
    "'s", "'LL", "the", " of", "12", " 2026", "...", "Ca", "iPh", "->", "://", "www.", " \n ", "\t\t", "🇫🇷",
    "n't", "“", "”",
)  # fmt: skip


def corpus(tokens: Sequence[str]) -> Iterator[str]:
    """Yield all texts to compare. `tokens` are the added tokens: each occurs alone, inside words and among spaces."""
    yield from TEXTS
    rng = Random(0)
    for _ in range(300):
        yield "".join(rng.choice(_PIECES) for _ in range(rng.randint(2, 60)))
    for start in range(0, len(tokens), 16):  # several in one text: a vocabulary may have thousands
        group = tokens[start : start + 16]
        yield "".join(group)
        yield "".join(f"a{t}b {t} {t}{t}\n{t}\n\n1{t}2. {t[:-1]} {t[1:]}" for t in group)
    yield from rng.sample(tokens, min(len(tokens), 200))
    for _ in range(50 if tokens else 0):
        yield "".join(rng.choice((rng.choice(tokens), rng.choice(_PIECES))) for _ in range(30))
