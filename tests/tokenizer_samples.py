"""Texts that tell tokenizers apart: scripts, code, spaces, numbers, and what is nearly the same."""

from tiny_tokenizers import text

from quantcli.tokenizer.pre_tokenizer import CHECK_TEXT

MORE = "\n".join(
    [
        "    indented\n\t\ttabs  and \t mixed \n\n\n\n  blank lines\r\nand\r\rreturns",
        "\u00a0no break \u3000wide",
        "1 12 123 1234 12345 1234567890 3.14159 1,000,000 0x1F ١٢٣ १२३ Ⅷ ½",
        "ΑΒΓαβγ ÀÉÎõü ДЖдж ǅ ﬁ HTTPServer iPhone's THEY'LL we'VE it'S Don'T ''s 'x",
        "naïve café 中文字符，标点。「日本語」カタカナ 한국어 ภาษาไทย हिन्दी বাংলা עִבְרִית العَرَبِيَّة",
        "👩‍👩‍👧‍👦🏳️‍🌈🇺🇳 a\u200bb\ufeffc",
        "----==== /// ... !?!? ((())) [[x]] {{y}} <<z>> __init__ $1.00 ~^`|\\",
    ]
)

SAMPLES = [
    text(),
    CHECK_TEXT,
    *MORE.split("\n"),
    "",
    "a",
    "Two words",
    " one space before",
    "   three before, two after  ",
    "\n",
    "\n\n\nlines\n\n",
    "\t\tx = 1\n\t\t\ty\t=\t2\t",
    "def f(xs: list[int]) -> dict[str, float]:\n    return {str(x): x / 2 for x in xs if x != 0}\n",
    "for (int i = 0; i < n; ++i) { a[i] += *(p++) ? 0x7fffffff : -1; } // done\r\n",
    "SELECT COUNT(*) FROM t WHERE name LIKE '%it''s%' AND ts >= '2024-02-29T23:59:59Z';",
    '{"key": [1, 2.5e-3, null, true], "text": "a\\n\\u00e9", "": {}}',
    '<p class="x">Fish &amp; chips</p><!-- https://example.org/a?b=c&d=%20#e -->',
    "$\\int_0^1 x^2\\,dx = \\frac{1}{3}$ ∀ε>0 ∃δ: |x−y|<δ ⇒ ∑ᵢ xᵢ² ≤ ∞",
    "'Tis the season; we'd've, y'all, rock'n'roll, O'Neill's, l'été, DON'T",
    "Straße, Ærøskøbing, Łódź, İstanbul ığüşöç, Þórr, Ελληνικά, Українська, Հայերեն, ქართული",
    "Tiếng Việt: Cửa hàng Nguyễn được yêu thích ở Huế",
    "東京都の人口は約1400万人です。我喜欢吃苹果，你呢？서울은 대한민국의 수도이다.",
    "สวัสดีชาวโลก नमस्ते दुनिया வணக்கம் ሰላም ልዑል မင်္ဂလာပါ ສະບາຍດີ",
    "مرحبا بالعالم، كيف حالك؟ שלום עולם! سلام دنیا",
    "👍🏽 🤷🏻‍♀️ 🧑‍🚀 ❤️‍🔥 1️⃣ ©®™ ☃ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓂀 ꧁༺",
    "e\u0301 a\u030a o\u0308 n\u0303 \u1e9b\u0323 \u212b \ufb03 \uff21\uff42\uff13",
    "\u200b\u200d\u2060\ufeff\u00ad \u2028\u2029 \u0085 \x07\x1b[0m \x7f end",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa !!!!!!!!!!!!!!!! ................ ________",
    "supercalifragilisticexpialidocious antidisestablishmentarianism qwrtpsdfgh",
    "9 99 999 9999 99999 999999 9999999 99999999 1e10 1_000 12:34:56 192.168.0.1 v1.2.3-rc4",
    "camelCase snake_case kebab-case SCREAMING_CASE PascalCaseXMLHttp2Request",
]
