# ruff: noqa: E501
"""Chinese text of the sample: web pages by topic and book chapters. The same method as ``english``: true numbers, own wording."""

from collections.abc import Callable
from random import Random

Paragraph = Callable[[Random], str]

CITIES = [
    ("武汉", "湖北", "长江"), ("重庆", "西南", "嘉陵江"), ("兰州", "甘肃", "黄河"), ("广州", "广东", "珠江"),
    ("杭州", "浙江", "钱塘江"), ("哈尔滨", "黑龙江", "松花江"), ("南京", "江苏", "长江"), ("福州", "福建", "闽江"), ("长沙", "湖南", "湘江"),
]  # fmt: skip
MOUNTAINS = [("珠穆朗玛峰", 8849), ("泰山", 1533), ("华山", 2155), ("黄山", 1864), ("峨眉山", 3099), ("玉山", 3952)]
EVENTS = [
    (105, "蔡伦改进了造纸术"), (605, "隋朝开始开凿大运河的主要河段"), (618, "唐朝建立"), (1271, "忽必烈定国号为元"),
    (1405, "郑和第一次率船队下西洋"), (1492, "哥伦布横渡大西洋"), (1687, "牛顿发表《原理》"), (1769, "瓦特为改良的蒸汽机取得专利"),
    (1872, "第一批中国幼童赴美留学"), (1911, "辛亥革命爆发"), (1969, "人类第一次登上月球"),
]  # fmt: skip
SORTS = [("插入排序", "元素个数的平方", "基本有序的数据"), ("归并排序", "n 乘以 log n", "链表和磁盘文件"), ("快速排序", "平均 n 乘以 log n", "内存中的数组"),
         ("堆排序", "n 乘以 log n", "内存紧张的场合")]  # fmt: skip
STRUCTURES = [
    ("哈希表", "平均只用常数时间就能查到一个键", "元素没有固定的次序"), ("平衡树", "始终保持键的大小次序", "每次查找要花对数时间"),
    ("链表", "在中间插入很便宜", "不能直接跳到第 k 个元素"), ("数组", "对处理器的缓存很友好", "在开头插入要移动所有元素"),
    ("堆", "可以立刻给出最小的元素", "别的问题回答得不快"), ("队列", "按到达的先后处理请求", "紧急的请求也只能排队"),
]  # fmt: skip
NUTRIENTS = [
    ("维生素C", "柑橘、青椒和土豆", "坏血病"), ("维生素D", "多脂的海鱼和皮肤上的阳光", "佝偻病"), ("维生素A", "胡萝卜、动物肝脏和绿叶菜", "夜盲症"),
    ("铁", "红肉、小扁豆和菠菜", "贫血"), ("碘", "海鱼、海带和加碘盐", "甲状腺肿"), ("维生素B1", "粗粮和豆类", "脚气病"),
]  # fmt: skip
ORGANS = [
    ("心脏", "安静时每分钟大约泵出五升血液"), ("肝脏", "储存糖分、制造胆汁并分解毒物"), ("肾脏", "过滤血液，调节水和盐的平衡"),
    ("肺", "把氧气送进血液，把二氧化碳带出来"), ("胰腺", "分泌胰岛素和消化食物的液体"), ("皮肤", "留住水分，挡住细菌，调节体温"),
]  # fmt: skip
NAMES = ["小林", "阿明", "陈老师", "王师傅", "李医生", "小雨", "老周", "阿芳", "张工", "小梅", "赵奶奶", "石头"]


def _area(r: Random) -> str:
    w, h = r.randint(3, 60), r.randint(3, 60)
    return (
        f"一个长方形宽{w}米，长{h}米，面积是{w}乘以{h}，等于{w * h}平方米，周长是{2 * (w + h)}米。周长相同的正方形边长为{(w + h) / 2:g}米，"
        f"面积为{((w + h) / 2) ** 2:g}平方米。周长一定时，正方形的面积总是最大的，这个道理种地的人早就知道。"
    )


def _fall(r: Random) -> str:
    t = r.randint(1, 9)
    return (
        f"不计空气阻力，石头自由下落{t}秒以后，速度大约是每秒{9.8 * t:.1f}米，落下的距离是{4.9 * t * t:.1f}米。距离和时间的平方成正比："
        "时间加倍，距离变成四倍。伽利略用斜面上滚动的小球发现了这条规律，因为斜面让一切都慢下来，慢到可以数得清。"
    )


def _ohm(r: Random) -> str:
    v, o = r.choice([3, 5, 9, 12, 24, 48]), r.choice([2, 4, 6, 8, 10, 100])
    return (
        f"欧姆定律说，电流等于电压除以电阻。{v}伏的电池接在{o}欧的电阻上，电流是{v / o:g}安，电阻每秒发热{v * v / o:g}焦。"
        "两个同样的电阻串联，电流减半；并联，电流加倍。做实验之前，先把数算一遍，就不会烧坏仪表。"
    )


def _sequence(r: Random) -> str:
    a, d, n = r.randint(1, 20), r.randint(2, 9), r.randint(8, 30)
    return (
        f"看这个等差数列：{'，'.join(str(a + i * d) for i in range(5))}……首项是{a}，公差是{d}。第{n}项等于{a}加{n - 1}乘{d}，也就是{a + (n - 1) * d}；"
        f"前{n}项的和是{n * (2 * a + (n - 1) * d) // 2}。方法是首尾配对：第一项和最后一项，第二项和倒数第二项，每一对的和都相同。"
    )


def _area_circle(r: Random) -> str:
    d = r.randint(4, 90)
    return (
        f"一口圆井的直径是{d}分米，周长约为{3.1416 * d:.1f}分米，面积约为{3.1416 * d * d / 4:.1f}平方分米。圆周率是周长与直径之比，无论圆大圆小都一样。"
        "祖冲之算到小数点后第七位，这个纪录保持了将近一千年。"
    )


def _sorting(r: Random) -> str:
    name, cost, use = r.choice(SORTS)
    items = r.sample(range(1, 99), 6)
    return (
        f"给一组数排序：{'、'.join(map(str, items))}。如果用{name}，代价大致是{cost}，它适合{use}。无论用哪种方法，结果都是"
        f"{'、'.join(map(str, sorted(items)))}；不同的是比较的次数、占用的内存，以及相等的元素会不会交换位置。不交换的，叫做稳定排序。"
    )


def _binary(r: Random) -> str:
    n = r.randint(17, 1000)
    return (
        f"在计算机里，十进制的{n}写成二进制是{n:b}，写成十六进制是{n:x}。一位十六进制数正好对应四位二进制数，所以程序员喜欢它。"
        f"表示{n}需要{n.bit_length()}位，这么多位最多可以数到{2 ** n.bit_length() - 1}。"
    )


def _structure(r: Random) -> str:
    (a, good_a, bad_a), (b, good_b, bad_b) = r.sample(STRUCTURES, 2)
    return (
        f"记录应该放在哪种数据结构里？{a}的好处是{good_a}，坏处是{bad_a}；{b}{good_b}，但是{bad_b}。关键要看程序把哪种操作做上一百万次，"
        "哪种操作只是偶尔做一做。先测量，再选择。"
    )


def _network(r: Random) -> str:
    size, rate = r.choice([20, 50, 120, 700, 1500]), r.choice([8, 16, 50, 100, 400])
    return (
        f"用每秒{rate}兆比特的线路传送{size}兆字节的文件要多久？一个字节是八个比特，文件共有{8 * size}兆比特，至少需要{8 * size / rate:.1f}秒。"
        "实际时间更长，因为每个数据包都带着地址和校验码，丢了的包还要重发。"
    )


def _place(r: Random) -> str:
    (city, where, river), other = r.sample(CITIES, 2)
    return (
        f"{city}在{where}，城边流着{river}。许多老城都建在容易渡河或者船只必须停靠的地方，{other[2]}边的{other[0]}也是这样。河水带来粮食、木材和消息，"
        "有时也淹没低处的街巷。细看今天的地名，往往还能找到从前的码头、集市和城墙。"
    )


def _mountain(r: Random) -> str:
    low, high = sorted(r.sample(MOUNTAINS, 2), key=lambda m: m[1])
    return (
        f"{high[0]}海拔约{high[1]}米，{low[0]}海拔约{low[1]}米，两者相差{high[1] - low[1]}米。山越高，空气越稀薄：每升高五千五百米，气压大约降低一半，"
        "水不到一百度就开了，所以在高原煮饭要用高压锅。"
    )


def _history(r: Random) -> str:
    (y1, e1), (y2, e2) = sorted(r.sample(EVENTS, 2))
    return (
        f"公元{y1}年，{e1}。{y2 - y1}年以后，也就是公元{y2}年，{e2}。年代好比钉子，历史挂在上面，但钉子本身说明不了什么。"
        "研究历史的人要问：是谁写下的，为谁而写，又漏掉了什么。一本账簿有时比一部史书更老实。"
    )


def _trade(r: Random) -> str:
    good, route = r.choice([("丝绸", "经过河西走廊向西"), ("茶叶", "驮在马背上翻越横断山"), ("瓷器", "装上海船向南"), ("盐", "沿着运河向北"), ("药材", "走水路顺江而下")])
    return (
        f"几百年间，{good}{route}运到远方。很少有商人走完全程：货物在每个大城易手，每次易手都要加价。与货物同行的还有文字、种子、故事和疾病，"
        "所以道路对沿途百姓的改变，比货物本身还要大。"
    )


def _nutrient(r: Random) -> str:
    name, food, lack = r.choice(NUTRIENTS)
    return (
        f"人体需要{name}，它主要来自{food}。长期缺乏可能引起{lack}。吃得杂一些，一般就够了；要吃补充剂的人应当知道，多并不等于好，缺什么可以请医生化验。"
    )


def _organ(r: Random) -> str:
    (a, does_a), (b, does_b) = r.sample(ORGANS, 2)
    return f"{a}有什么用？简单地说，{a}{does_a}。没有哪个器官单独工作，例如{b}{does_b}，一处出了毛病，别处很快就会感到。所以好医生问的是整个人，而不只是一处疼痛。"


def _pulse(r: Random) -> str:
    age, rest = r.randint(20, 75), r.randint(52, 78)
    return (
        f"有一条经验：最高心率大约等于二百二十减去年龄。{age}岁的人，最高心率约为每分钟{220 - age}次。如果安静时的脉搏是{rest}次，那么还有"
        f"{220 - age - rest}次的余地。这条经验很粗略，健康的人相差十次也很平常。"
    )


def _prevention(r: Random) -> str:
    habit, effect = r.choice([("饭前用肥皂洗手二十秒", "可以洗掉大部分细菌"), ("每天快走半小时", "几个星期就能使血压下降"), ("每晚睡足七八个小时", "有助于记忆和抵抗力"),
                              ("早晚刷牙", "既保护牙齿也保护牙龈"), ("按时接种疫苗", "让身体提前认识病菌")])  # fmt: skip
    return f"预防很平淡，却很有效。{habit}，{effect}。没有得的病谁也看不见，所以好习惯需要提醒。把短短几句话贴在门边，比发一本厚厚的小册子更管用。"


TOPICS: dict[str, tuple[list[str], list[Paragraph]]] = {
    "mathematics_and_physics": (["数与运动", "几道算题", "厨房里的物理", "数学小札"], [_area, _fall, _ohm, _sequence, _area_circle]),
    "computer_science_and_engineering": (["程序怎样保持次序", "给年轻工程师的笔记", "机器在做什么", "编程闲谈"], [_sorting, _binary, _structure, _network]),
    "history_and_geography": (["河流、道路与年代", "走过从前", "地图与日历", "值得一去的地方"], [_place, _mountain, _history, _trade]),
    "medicine_and_health": (["保持健康", "候诊室里的问题", "身体浅说", "一周健康"], [_nutrient, _organ, _pulse, _prevention]),
}
LEADS = ["这一页回答几个读者的问题。", "今天的笔记很短。", "{name}来信问了一件事，也许别人也想知道。", "先从简单的说起。", "下面的话最早是讲给初学者听的。", "翻开{name}的旧本子，里面有这样一段。"]
CLOSES = ["欢迎指正。", "下周再谈。", "有不明白的地方，请来信，{name}每封都看。", "换几个数，自己试一试。", "今天就到这里。", "感谢{name}读了初稿。"]


def web_page(topic: str, r: Random) -> str:
    """One page about ``topic``: a title, a lead, two to four paragraphs and a closing line."""
    titles, makers = TOPICS[topic]
    body = [make(r) for make in r.sample(makers, r.randint(2, 4))]
    lead, close = r.choice(LEADS).format(name=r.choice(NAMES)), r.choice(CLOSES).format(name=r.choice(NAMES))
    return "\n\n".join([r.choice(titles), lead, *body, close])


PLACES = ["磨坊", "渡口", "旧学堂", "灯塔", "果园", "车站", "采石场", "图书馆"]
WEATHER = ["斜斜的雨", "一层白霜", "暖和的南风", "浓得像棉花的雾", "清冷的天光"]
OBJECTS = ["一把铜钥匙", "一封没贴邮票的信", "一盒种子", "一只停了的钟", "一张铅笔画的地图", "一个空琴盒"]
TRADES = ["木匠", "先生", "摆渡人", "面包师", "钟表匠", "花匠", "大夫", "邮差"]
SAYINGS = ["急着过桥的人，总要在下一座桥头等", "答应了的事，就是欠下的债", "看天是补不好屋顶的", "水记得它从前走过的路", "最近的路，是你认得的那一条", "重不重，要问挑担子的人"]


def _scene(r: Random, hero: str, friend: str, thing: str) -> str:
    place, weather, trade = r.choice(PLACES), r.choice(WEATHER), r.choice(TRADES)
    steps = [
        f"清早，外面是{weather}，{hero}带着{thing}往{place}走去。",
        f"{trade}早已到了，和平常一样，抬头看了一眼，并不吃惊。",
        f"“你来晚了，”{trade}说，“{r.choice(SAYINGS)}。”",
        f"{friend}笑了，{hero}却把这句话想了一路。",
        f"到了{r.choice(PLACES)}，他们数了数剩下的东西：{r.randint(2, 9)}个铜板，{r.randint(2, 12)}个苹果，半块干粮。",
        f"“够了，”{friend}说，“{r.choice(['去年冬天', '今年春天', '从前在老家'])}还没有这么多。”",
        f"到中午，他们敲了{r.randint(3, 14)}家的门，谁也没有见过这样东西。",
        f"一位年老的{r.choice(TRADES)}把它翻来覆去看了两遍，小心地还给了他们。",
        f"傍晚，{place}亮起一盏灯，好一会儿谁也没有说话。",
        f"{hero}把这些都记了下来，因为没有写下来的事，各人有各人的说法。",
    ]
    start = r.randint(0, 2)
    return "".join(steps[start : start + r.randint(5, 8)])


def book_chapter(number: int, r: Random) -> str:
    """One chapter of about two thousand characters."""
    hero, friend = r.sample(NAMES, 2)
    thing = r.choice(OBJECTS)
    head = f"第{number}回\n\n{hero}与{friend}带着{thing}到{r.choice(PLACES)}去"
    return "\n\n".join([head, *(_scene(r, hero, friend, thing) for _ in range(r.randint(8, 14)))])
