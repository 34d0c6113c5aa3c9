"""The last sentence of a Chinese answer: "答：边长是6.5分米。", "所以“学”的对面是“习”字。", "故所求概率为23/28。"."""

from __future__ import annotations

import re

SENTENCE_CHARACTERS = 200  # a longer sentence concludes nothing here
_HAN = re.compile(r"[\u4e00-\u9fff]")
_SENTENCE_END = re.compile(r"[。；！\n]")
_CONCLUDES = re.compile(
    r"(?:答[：:，]|综上(?:所述)?|由此可见|可见|可知|可得|所以|因此|因而|从而|于是|故(?!障|事|意)|即|∴|得(?=[：:，\s$]))[，,：:\s]*"
)
_STATES = re.compile(
    r"(?:(?<![不非])(?:分别)?(?:等于|是|为|有|[需要]{1,2})(?!不|否)|=|＝)[\s*]*(?P<answer>[^=＝是为]{1,80})$"
)
_DOUBTED = re.compile(
    r"若|如果|假如|假设|设|当|可能|也许|或许|大概|不|非|没|无|未|除|错|误|约|至少|至多|最多|最少|超过|多于|少于|以上|以下|大于|小于|吗"
    r"|呢|？|\?|比(?!值|例|为)|倍|一半|半(?!径|圆)|平方(?!厘米|分米|米|千米)|立方(?!厘米|分米|米)|倒数|相反数|认为|说|猜|看作|否|但|而|差一点|几乎|原来|之前"
)
_QUOTED = re.compile(r"[“\"「『](?P<inner>[^“”\"「」『』]{1,20})[”\"」』]\s*(?:字|号)?")
_NUMBER = re.compile(r"\d")
_POWER = re.compile(r"(?:[²³]|\^)\s*\$?\s*$")


def chinese_conclusion(text: str) -> list[tuple[int, str]]:
    """What the last sentence states behind "所以", "答：" and the like; nothing where it supposes, denies or compares.

    >>> chinese_conclusion("周长为26分米。\\n\\n答：边长是6.5分米。"), chinese_conclusion("所以x不等于5。")
    ([(15, '6.5分米')], [])
    """
    text = text.rstrip(" \n。.*！")
    if _HAN.search(text[-SENTENCE_CHARACTERS:]) is None:
        return []
    start = max((match.end() for match in _SENTENCE_END.finditer(text)), default=0)
    sentence = text[start:]
    marks = list(_CONCLUDES.finditer(sentence)) if len(sentence) <= SENTENCE_CHARACTERS else []
    if not marks or (marks[-1].start() and _SUPPOSED.search(sentence, 0, marks[-1].start())):
        return []
    said = sentence[marks[-1].end() :]
    clauses = re.split(r"，|,(?=\s|[\u4e00-\u9fff])", said)
    behind = "，".join(clauses[1:])
    found = _STATES.search(clauses[0].strip())
    if found is None or _DOUBTED.search(said) or _NUMBER.search(behind) or re.search(r"[是为=]", behind):
        return []
    before, answer = clauses[0].strip()[: found.start()], found["answer"].strip(" *")
    if _POWER.search(before) or (_NUMBER.search(before) and "=" in before and _HAN.search(answer)):
        return []
    quoted = _QUOTED.fullmatch(answer)
    return [(start + sentence.rindex(answer), quoted["inner"] if quoted else answer)]


_SUPPOSED = re.compile(r"若|如果|假如|假设|认为|说|猜|错")
