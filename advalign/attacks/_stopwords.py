"""English function words, by class. Negations are among them, as in the usual lists: an attack that adds or drops "not" changes the
meaning."""

STOPWORDS = frozenset(
    """
    i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it its itself
    they them their theirs themselves one who whom whose which what this that these those
    a an the some any each every either neither both all few more most much many several such other another own same no not nor none
    am is are was were be been being have has had having do does did doing will would shall should can could may might must ought
    in on at by for with about against between among into through during before after above below to from up down of off over under
    within without upon across along around near since until toward towards per via
    and or but if because as while than although though unless whether so yet
    here there where when why how again further then once now just only very too also ever never still even almost rather quite
    i'm i've i'll i'd you're you've you'll you'd he's he'll he'd she's she'll she'd it's it'll we're we've we'll we'd they're they've
    they'll they'd that's that'll there's here's who's what's let's
    don't doesn't didn't isn't aren't wasn't weren't haven't hasn't hadn't won't wouldn't shan't shouldn't can't cannot couldn't mustn't
    mightn't needn't ain't s t d ll m o re ve y
    """.split()
)
