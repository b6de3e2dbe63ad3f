"""Texts as a hostile model, data set, exception or file name would write them. Where one ran or loaded, `pwned` or port 9 would show it."""

GONE = "http://127.0.0.1:9"
SCRIPTS = (
    "<script>pwned('script')</script>",
    "</script><script>pwned('closed')</script>",
    "<img src=x onerror=pwned('img')>",
    f"<img src='{GONE}/a.png'>",
    "<svg onload=pwned('svg')><animate onbegin=pwned('animate') attributeName=x dur=1s>",
    "\"><b onmouseover=pwned('attribute') autofocus onfocus=pwned('focus') tabindex=0>",
    "' onclick='pwned(1)' style='background:url(http://127.0.0.1:9/c)",
    f"<iframe src='{GONE}/frame'></iframe><object data='{GONE}/o'></object><embed src='{GONE}/e'>",
    f"<link rel=stylesheet href='{GONE}/s.css'><style>@import '{GONE}/i.css';body{{background:url({GONE}/bg)}}</style>",
    f"<meta http-equiv=refresh content='0;url={GONE}/moved'><base href='{GONE}/'>",
    f"<form action='{GONE}/f'><input name=q value=1></form><script>document.forms[0].submit()</script>",
    "</td></tr></table></main></body></html><script>pwned('end')</script>",
    "<!-- --><!--> <![CDATA[ ]]> <?php ?>",
    "<noscript><p title='</noscript><img src=x onerror=pwned(2)>'>",
    "&lt;script&gt; &amp; &#60;b&#62;",
    "<textarea></title></style></textarea><plaintext>",
    "<a href=\"javascript:pwned('link')\">x</a><a href='data:text/html,<script>pwned(3)</script>'>y</a>",
    "{{ 7 * 7 }} {% raw %} ${pwned} #{pwned} <%= 7 %>",
)
MARKDOWN = (
    f"![x]({GONE}/b.png)",
    f"[x]({GONE}/l) [y](javascript:pwned('md')) <{GONE}/auto> {GONE}/bare www.example.org mailto:a@b.c",
    f"[r]: {GONE}/ref 'title'\n![r][r]",
    "# heading\n\n---\n* item\n1. one\n> quote\n    code",
    "a | b\n---|---\nc | d",
    "``` `` ` unclosed code `",
    "*em* **strong** __u__ _i_ ~~gone~~ ~x~ $\\frac$ $$x$$ \\*",
    "```mermaid\ngraph TD; A-->B\n```",
    "Setext\n===",
    "+ plus\n- minus\n2) two",
)
CONTROL = (
    "\x1b]0;title\x07\x1b[2J\x1b[31mred\x1b[0m\x1b]8;;http://127.0.0.1:9/\x07link\x1b]8;;\x07",
    "\x9b31m\x90q\x9c C1",
    "over\rwritten\b\b\b\x7f\x00nul\x0b\x0c",
    "\u202egnp.exe\u202c \u2066isolate \u200f\u061c",
    "line\u2028paragraph\u2029next\x85",
    "\ud800 lone \udfff surrogates \udc80",
    "\ufffe \uffff \ufdd0",
    "[red]rich[/red] [link=http://127.0.0.1:9/]x[/link] [/] [bold",
)
PLOTS = ("$\\frac$", "$a_b", "_hidden", "#010203", "\\$ \\alpha $x$", "%s %(x)s {0}", "漢字 🙂 \u0e01\u0e33")
CELLS = ("=cmd|'/c calc'!A1", "+1+1", "-2+3", "@SUM(1)", "\t=1", 'quote " \' ,;\n"', "'", "")
LONG = ("x" * 10_000_000, "the a " * 50_000, "( " * 50_000, "\n" * 100_000)
ALL = (*SCRIPTS, *MARKDOWN, *CONTROL, *PLOTS, *CELLS)

__all__ = ["ALL", "CONTROL", "GONE", "LONG", "MARKDOWN", "PLOTS", "SCRIPTS"]
