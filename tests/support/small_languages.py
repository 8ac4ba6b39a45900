"""Made-up texts of languages whose letters are several code points, or whose words have no spaces.

Words are written by hand, and put together at random: the same text for the same seed.
"""

import random

WITHOUT_SPACES = {"th", "bo", "my", "km", "lo", "ja"}
WORDS = {
    "th": "เด็กผู้ชาย คุณครู หนังสือพิมพ์ ข้าวเหนียว น้ำแข็ง ที่ตลาด เพื่อนบ้าน จักรยาน ทุกวันจันทร์ ไม่ได้",
    "hi": "लड़का विद्यार्थी हिन्दी कविता ढूँढ किताब पत्रिका क्योंकि ज़रूरत स्त्री राष्ट्रीय मित्रों में है",
    "bo": "བཀྲ་ཤིས་ བདེ་ལེགས་ སློབ་གྲྭ་ དགེ་རྒན་ བསྒྲུབས་ རྒྱལ་པོ་ སྐད་ཡིག་ ཁྱེད་རང་ གངས་ཅན་ ལྗོངས་",
    "my": "မြန်မာ ကျောင်းသား စာအုပ် ဈေးထဲမှာ ထမင်းစား သူငယ်ချင်း ကျေးဇူးတင်ပါသည် နေ့လယ် ရွှေတိဂုံ",
    "km": "ភាសាខ្មែរ សិស្ស សៀវភៅ ផ្សារ ស្រីស្រស់ មិត្តភក្តិ អរគុណ ខ្ញុំ កម្ពុជា ព្រះវិហារ",
    "ta": "தமிழ் மாணவர்கள் புத்தகம் சந்தையில் நண்பர்கள் வீட்டிற்கு எழுதுகிறார் கொண்டு வேண்டும் ஸ்ரீ",
    "ar": "كِتَابٌ مُدَرِّسَةٌ السُّوقِ صَدِيقِي يَكْتُبُ الطَّالِبُ جَمِيلَةٌ البَيْتِ رِسَالَةً كُلَّ يَوْمٍ",
    "he": "סֵפֶר תַּלְמִיד מוֹרָה שָׁלוֹם הַבַּיִת כּוֹתֵב מִכְתָּב חָבֵר יָפֶה בְּכָל יוֹם",
    "am": "ሰላም ተማሪ መጽሐፍ ገበያ ጓደኛዬ አስተማሪ ይጽፋል ቤተሰብ በየቀኑ ኢትዮጵያ",
    "ka": "გამარჯობა მოსწავლე წიგნი ბაზარში მეგობარი მასწავლებელი წერილი სახლი ყოველდღე საქართველო",
    "ko": "안녕하세요 학생이 도서관에서 친구와 선생님께 편지를 씁니다 시장에서 날마다 대한민국",
    "ja": "学生 は 図書館で コンピューター を 使います 友達と がんばって いる プログラミング の カタカナ",
    "vi": "học sinh quyển sách người bạn thư viện đường phố được những nghĩa trường",
    "si": "ශ්‍රී ලංකාව සිසුවා පොත වෙළඳපොළ මිතුරා ගුරුවරයා ලියනවා හැමදාම",
}


def made_text(language: str, kilobytes: float, seed: int = 0) -> str:
    """Sentences of four to nine words at random, of so many UTF-8 bytes or a few more."""
    generator, words = random.Random(seed), WORDS[language].split()
    space, sentences, size = "" if language in WITHOUT_SPACES else " ", [], 0
    while size < 1000 * kilobytes:
        sentence = space.join(generator.choices(words, range(len(words), 0, -1), k=generator.randint(4, 9))) + ".\n"
        sentences.append(sentence)
        size += len(sentence.encode())
    return "".join(sentences)
