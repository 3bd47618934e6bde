"""Two fixed sets of pictures and texts: one calibrates quantization, the other proves conversions.

They have nothing in common, because a proof on the calibration's samples would look too good. Both are generated, the
same on every machine. Answers need not be what a model would say: they are forced on it (teacher forcing), and only
its distribution after each of their tokens counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from pocketvlm_converters.samples.drawing import RGB, chart, landscape, noise, page, shapes, stripes, texture


@dataclass(frozen=True, eq=False)
class Sample:
    """One exchange. `pictures` are uint8 [height, width, 3], at most 512 pixels along an edge, before `question`."""

    pictures: tuple[RGB, ...]
    question: str
    answer: str

    def __post_init__(self) -> None:
        for picture in self.pictures:
            picture.flags.writeable = False  # samples are cached and shared


def proof_samples(count: int | None = None) -> tuple[Sample, ...]:
    """Return the first `count` of eight samples with 12 pictures, for `verify`; calibration must not use them."""
    return _proof()[:count]


def calibration_samples(count: int | None = None) -> tuple[Sample, ...]:
    """Return the first `count` of 24 samples, for importance matrices."""
    return _calibration()[:count]


_RECEIPT = ("CORNER SHOP", "", "2 BREAD     5.80", "1 MILK      1.35", "3 APPLES    2.07", "----------------",
            "TOTAL       9.22", "CASH       10.00", "CHANGE      0.78", "", "14:32 03/05/2024")  # fmt: skip
_CODE = ("DEF AREA(W, H):", "  IF W < 0:", "    RETURN NONE", "  RETURN W * H", "", "PRINT(AREA(6, 7))")
_LETTER = ("DEAR MS. LINDQVIST,", "", "YOUR ORDER NO. 58-1130", "LEFT OUR STORE TODAY.", "EXPECT IT BY FRIDAY.", "",
           "KIND REGARDS,", "T. OKAFOR")  # fmt: skip
_TABLE = ("CITY     KM   H:MM", "BERGEN  463   6:40", "OSLO      0   0:00", "BODO   1190  16:05")
_SIGN = ("PLATFORM 9", "TO HARBOUR", "EVERY 12 MIN")


@cache
def _proof() -> tuple[Sample, ...]:
    sizes = (("NORTH", 42), ("SOUTH", 87), ("EAST", 15), ("WEST", 63))
    return (
        Sample(
            (landscape((384, 256), 5),),
            "What does this picture show?",
            "The picture shows rolling green hills under a pale blue sky. A bright sun stands above the horizon, and a "
            "few soft clouds drift to the left.",
        ),
        Sample(
            (page((256, 360), _RECEIPT, 3),),
            "Extract the items and the total as JSON.",
            '{"shop": "Corner Shop", "items": [{"name": "bread", "quantity": 2, "price": 5.80}, {"name": "milk", '
            '"quantity": 1, "price": 1.35}], "total": 9.22, "paid": "cash"}',
        ),
        Sample(
            (chart((320, 240), sizes, "SALES BY REGION"),),
            "Give the chart as a Markdown table.",
            "| Region | Sales |\n|---|---:|\n| North | 42 |\n| South | 87 |\n| East | 15 |\n| West | 63 |\n\nSouth "
            "sold most: 87 of 207, or 42 %.",
        ),
        Sample(
            (shapes((240, 240), (("circle", "red", 60, 60, 40), ("square", "blue", 180, 170, 45))),),
            "What is in the picture?",
            "A large red circle at the top left and a large blue square at the bottom right.",
        ),
        Sample(
            (landscape((500, 100), 8), texture((100, 500), 9)),
            "Was unterscheidet die beiden Bilder?",
            "Das erste Bild ist ein breites Panorama mit Hügeln und Sonne. Das zweite ist schmal und hoch: nur bunte, "
            "weiche Flecken, keine Gegenstände.",
        ),
        Sample(
            (noise((200, 304), 11),),
            "这张图片里有什么？",
            "这张图片只有随机的彩色噪点，看不到任何物体或文字。尺寸大约是200×304像素。",
        ),
        Sample(
            (page((448, 224), _CODE, 4, ink=(80, 250, 120), paper=(20, 24, 30)),),
            "Write this program down and say what it prints.",
            "```python\ndef area(w, h):\n    if w < 0:\n        return None\n    return w * h\n\nprint(area(6, 7))\n"
            "```\nIt prints `42`.",
        ),
        Sample(
            (
                stripes((64, 64), 8, (250, 250, 250), (10, 10, 10), check=True),
                shapes((96, 64), (("triangle", "green", 48, 32, 24),), (230, 230, 210)),
                texture((224, 224), 14, 48),
                page((128, 48), ("EXIT 7B",), 4),
            ),
            "Décris chaque image en une phrase.",
            "1. Un damier noir et blanc.\n2. Un triangle vert sur un fond clair.\n3. Des taches de couleurs floues.\n"
            "4. Le texte « EXIT 7B » en noir.",
        ),
    )


@cache
def _calibration() -> tuple[Sample, ...]:
    months = (("JAN", 12), ("FEB", 30), ("MAR", 55), ("APR", 48), ("MAY", 91))
    votes = (("YES", 71), ("NO", 22), ("NONE", 7))
    scene = shapes((320, 240), (("square", "yellow", 70, 70, 40), ("ring", "purple", 230, 90, 50),
                                ("cross", "black", 150, 190, 30)))  # fmt: skip
    pair = (
        shapes((160, 160), (("circle", "green", 80, 80, 50),)),
        shapes((160, 160), (("circle", "orange", 80, 80, 25),)),
    )
    return (
        Sample((landscape((448, 336), 101),), "Describe this photo in detail.",
               "A wide meadow lies in front of two dark ridges. The light is soft, as in the early evening; the sun is "
               "low on the right and the sky turns from deep blue to yellow."),
        Sample((page((360, 256), _LETTER, 3),), "Read the letter aloud.",
               "Dear Ms. Lindqvist, your order no. 58-1130 left our store today. Expect it by Friday. Kind regards, "
               "T. Okafor"),
        Sample((chart((400, 300), months, "RAIN IN MM"),), "Which month had the most rain, and how much?",
               "May, with 91 mm. March had 55 mm, April 48 mm, February 30 mm and January only 12 mm."),
        Sample((scene,), "How many shapes are there, and which?",
               "There are three shapes: a yellow square at the top left, a purple ring at the top right and a small "
               "black cross at the bottom."),
        Sample((texture((256, 256), 105),), "Is there any text in this image?",
               "No. It is an abstract pattern of blurred colours, like clouds or marble, without letters or digits."),
        Sample((noise((128, 128), 106),), "What do you see?",
               "Only noise: every pixel has a random colour, as on a television without a signal."),
        Sample((page((300, 200), _TABLE, 3),), "Turn the table into CSV.",
               "city,km,time\nBergen,463,06:40\nOslo,0,00:00\nBodø,1190,16:05\n"),
        Sample((page((256, 128), _SIGN, 4, paper=(250, 220, 60)),), "Where does the train go?",
               "From platform 9 to the harbour. It runs every 12 minutes."),
        Sample((landscape((300, 400), 109),), "¿Qué se ve en la fotografía?",
               "Se ve un paisaje con colinas verdes y un cielo claro. No hay personas, animales ni edificios; el sol "
               "está cerca del horizonte."),
        Sample((stripes((256, 192), 16, (200, 30, 30), (245, 245, 245)),), "Beschreibe das Muster.",
               "Schräge Streifen, abwechselnd rot und weiß, alle gleich breit. Es könnte ein Absperrband sein."),
        Sample((landscape((512, 160), 111),), "この写真について説明してください。",
               "広い空の下に緑の丘が続いている風景です。太陽が低く、夕方のように見えます。"),
        Sample((shapes((200, 200), (("triangle", "red", 100, 100, 70),), (210, 225, 240)),), "Что на картинке?",
               "На картинке большой красный треугольник на светло-голубом фоне. Больше ничего нет."),
        Sample(pair, "Compare the two images.",
               "Both show one circle in the middle. In the first it is large and green, in the second it is small and "
               "orange."),
        Sample((chart((320, 320), votes, "POLL"),), "Return the result as JSON only.",
               '{"title": "poll", "unit": "%", "results": {"yes": 71, "no": 22, "none": 7}, "winner": "yes"}'),
        Sample((page((400, 160), ("SELECT NAME, AGE", "FROM PEOPLE", "WHERE AGE > 30"), 4),), "Explain this query.",
               "```sql\nSELECT name, age FROM people WHERE age > 30;\n```\nIt lists name and age of everybody in the "
               "table `people` who is older than 30."),
        Sample((texture((384, 128), 116, 64),), "صف الصورة.",
               "الصورة مجردة وفيها ألوان ناعمة متداخلة، ولا يوجد فيها أي نص أو شخص."),
        Sample((page((240, 240), ("1 + 1 = 2", "7 * 8 = 56", "9 - 12 = -3", "81 / 9 = 9"), 4),), "Check these sums.",
               "All four are right: 1 + 1 = 2, 7 × 8 = 56, 9 − 12 = −3 and 81 / 9 = 9."),
        Sample((stripes((160, 320), 20, (30, 30, 120), (240, 220, 160), check=True),), "이 그림을 설명해 주세요.",
               "파란색과 베이지색이 번갈아 나오는 체스판 무늬입니다. 세로로 긴 그림입니다."),
        Sample((landscape((200, 150), 119), page((200, 60), ("WELCOME TO", "PINE VALLEY"), 3)),
               "Write a short caption that uses both pictures.",
               "Welcome to Pine Valley, where the hills glow every evening!"),
        Sample((shapes((300, 200), (("circle", "blue", 60, 100, 30), ("circle", "blue", 150, 100, 30),
                                    ("circle", "red", 240, 100, 30))),), "Which circle is the odd one out?",
               "The one on the right: it is red, the other two are blue."),
        Sample((page((320, 200), ("SERVER LOG", "08:01 START", "08:02 WARN DISK 91%", "08:07 ERROR 507"), 3,
                     ink=(220, 220, 220), paper=(0, 0, 0)),), "What went wrong?",
               "At 08:02 the disk was 91 % full, and at 08:07 the server failed with error 507 (insufficient storage). "
               "Free some space and restart it."),
        Sample((chart((256, 200), (("A", 50), ("B", 50), ("C", 100)), "SHARE"),), "Quelle part est la plus grande ?",
               "La part C, avec 100. Les parts A et B sont égales : 50 chacune, donc la moitié de C."),
        Sample((noise((48, 36), 123),), "Can you enlarge and describe it?",
               "The image is tiny, about 48 by 36 pixels, and holds nothing but coloured dots. I can't make out more."),
        Sample((landscape((336, 336), 124),), "यह चित्र किस बारे में है?",
               "यह एक प्राकृतिक दृश्य है: हरी पहाड़ियाँ, हल्का नीला आकाश और चमकता सूरज। कोई व्यक्ति नहीं दिखता।"),
    )  # fmt: skip
