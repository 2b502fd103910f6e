"""Texts that tokenizers trip over: scripts, emoji, code, runs of whitespace, bytes, special tokens."""

from collections.abc import Iterable

SCRIPTS = (
    "The quick answer isn't always the right one; we'll see, won't we?",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich – 1.234,56 € pro Stück!",
    "Où l’été brûle, garçon, naïveté et cœur s’accordent : « déjà vu » ?",
    "El pingüino Wenceslao comió ñoquis; ¿cuántos? ¡Doce!",
    "Zażółć gęślą jaźń. Příliš žluťoučký kůň. Šešios žąsys.",
    "Съешь же ещё этих мягких булок, да выпей чаю. Їжак, ґанок, ў.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία· άλφα, βήτα.",
    "שלום עולם — דג סקרן שט בים. נִקּוּד",
    "صِف خَلقَ خَودِ كَمِثلِ الشَمسِ ٣٫١٤ ،؟",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा १२३",
    "আমি বাংলায় গান গাই। தமிழ் மொழி எளிது. తెలుగు ಕನ್ನಡ മലയാളം ગુજરાતી",
    "กินข้าวหรือยัง ภาษาไทยไม่เว้นวรรค ລາວ ភាសាខ្មែរ မြန်မာ",
    "今日は良い天気ですね。漢字とカタカナとｶﾅ、ー〜！",
    "我能吞下玻璃而不傷身體。我们去买东西，好吗？㐀𠀀𪜶",
    "다람쥐 헌 쳇바퀴에 타고파. ㄱㄴㄷ 한글",
    "Hawaiʻi, Tiếng Việt có dấu, Türkçe ığüşöç İI, Română ățîșâ",
    "ქართული ენა, Հայերեն լեզու, አማርኛ, ᏣᎳᎩ, ᓄᓇᕗᑦ, ⵜⴰⵎⴰⵣⵉⵖⵜ",
)

SIGNS = (
    "👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇧🇷 1️⃣ ©️ ☃ 😀😃😄",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α∧¬β → √2 ≈ 1.41421356237 ± 10⁻¹¹; ½ ¾ Ⅻ ①",
    "e\u0301 é \u212b Å ﬁ fi ｆｕｌｌ Ａ１ \u1e9b\u0323",
    "zero\u200bwidth\u200djoiner \u00a0no-break \u2009thin \u3000wide \u202eright-to-left\u202c \ufeffmark",
    "␀ \x00 \x01 \x1b[31m \x7f \u0085 \ufffd \ue000 \U0010ffff",
    "{{[(<>)]}} \\ / | ~ ` ^ _ -- --- ... … “” ‘’ «» „“ ‹› ·•",
)

CODE = (
    "def f(x: int) -> str:\n\tif x > 0:\n\t\treturn f'{x!r:>10}'\n    # mixed\n\treturn \"\"\n",
    '<div class="a-b">&nbsp;&lt;</div>\r\n<!-- x -->\r\n',
    "SELECT * FROM t WHERE a <> 'b''c' AND d IN (1, 2);  -- e",
    "https://user:pa%20ss@example.org:8080/a/b.html?q=1&r=%C3%A9#top me@example.com C:\\dir\\file.txt",
    "0xDEADBEEF 1e-9 1_000_000 3.14159 00012 123456789012345678901234567890 v1.2.3-rc.4+5",
    "∂f/∂x = $\\frac{a}{b}$ `code` **bold** ~~no~~ | a | b |\n|---|---|\n",
)

WHITESPACE = (
    " ",
    "  two, three   and four    spaces ",
    " leading",
    "trailing ",
    "a\nb\n\nc\n\n\nd\n\n\n\ne",
    "\n",
    "\n\n \n  \n",
    "a\tb\t\tc\t\t\td",
    "a \n b \t\n\tc",
    "x" + " " * 40 + "y" + "\n" * 20 + "z" + "\t" * 10,
    "\u2581 \u2581\u2581 lower one eighth blocks",
)

SHAPES = (
    "a",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "UPPER lower CamelCase snake_case kebab-case SCREAMING_SNAKE iPhone McDonald",
    "Donaudampfschifffahrtsgesellschaftskapitän pneumonoultramicroscopicsilicovolcanoconiosis",
    "!!!???!?!?;;;:::,,,... ======= ******* ####### $$$ %%% @@@",
    "<0x41> <0xE2> <0xZZ> <unused0> [multimodal] <s> </s> <|x|> <start_of_turn>",
)


def probe_texts(special: Iterable[str]) -> tuple[str, ...]:
    """Return the texts; `special` are texts of special tokens, tried alone and between words."""
    marked = tuple(special)
    around = tuple(text for token in marked for text in (token, f"a{token}b", f" {token} \n{token}{token}"))
    return (*SCRIPTS, *SIGNS, *CODE, *WHITESPACE, *SHAPES, *around, "".join(marked))
