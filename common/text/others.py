"""Words and phrases that are no label's: other sounds, other meanings, and words that say nothing.

What is here is never taken for a label, however alike it is spelt, and a phrase hides the shorter
one that it holds: a hot dog is no dog.
"""

from __future__ import annotations

OTHER_SOUNDS = """
bird|birds|birdsong|bird song|songbird|whale song|sparrow|pigeon|dove|seagull|
gull|duck|goose|geese|
raven|crow|crows|owl|parrot|eagle|hawk|magpie|turkey|hen|chicken|chick|peacock|woodpecker|cuckoo|
cat|kitten|meow|purr|cow|moo|sheep|goat|lamb|bleat|pig|oink|horse|neigh|
donkey|mule|lion|tiger|bear|
wolf|wolves|fox|monkey|ape|elephant|seal|sea lion|whale|dolphin|fish|frog|
toad|snake|mouse|mice|rat|
squirrel|deer|rabbit|insect|cricket|cicada|bee|wasp|hornet|fly|mosquito|bug|animal|leopard|
lawn mower|lawnmower|mower|lawn mowing|mowing|leaf blower|leafblower|
blower|hedge trimmer|strimmer|
grass trimmer|weed whacker|vacuum cleaner|vacuum|hoover|washing machine|
dishwasher|dryer|hair dryer|
hairdryer|blender|mixer|microwave|fridge|freezer|toaster|kettle|sewing machine|typewriter|printer|
keyboard|typing|mouse click|computer|laptop|modem|phone|telephone|ringtone|
doorbell|door bell|bell|
church bell|chime|alarm|alarm clock|clock alarm|clock radio|fire alarm|smoke alarm|car alarm|
burglar alarm|timer|buzzer|door|door knock|knock|footstep|step|creak|lift|elevator|escalator|
train|train horn|train whistle|railway|tram|trolley|metro|subway|underground|locomotive|
steam engine|jet engine|plane|airplane|aeroplane|aircraft|jet|glider|rocket|spaceship|
boat|motorboat|speedboat|ship|ship horn|fog horn|foghorn|air horn|bicycle|
bike|bike bell|skateboard|
tyre|tire|brake|screech|skid|tractor|combine|harvester|bulldozer|excavator|crane|
hand saw|handsaw|sawing|circular saw|table saw|band saw|jigsaw|angle grinder|grinder|sander|lathe|
hammer|hammering|nail gun|staple gun|glue gun|heat gun|sledgehammer|screwdriver|wrench|axe|
applause|clap|clapping|cheer|cheering|crowd|audience|laugh|laughing|
laughter|cough|coughing|breath|
breathing|snore|snoring|sniff|sigh|yawn|hiccup|burp|fart|kiss|whistle|whistling|heartbeat|
thunder|thunderstorm|lightning|storm|wind|breeze|gale|hail|snow|avalanche|earthquake|volcano|
river|stream|brook|creek|waterfall|fountain|water|tap|faucet|shower head|bath|flush|toilet|splash|
swimming pool|bubble|drip|firework|firecracker|cracker|explosion|bomb|blast|pop|balloon|
glass|bottle|can|cup|plate|dish|cutlery|pot|pan|coin|key|zip|zipper|scissors|paper|
piano|grand piano|baby grand|baby grand piano|organ|violin|cello|viola|flute|
trumpet|trombone|tuba|
french horn|saxophone|clarinet|oboe|harp|banjo|ukulele|drum|drum kit|
drum machine|cymbal|xylophone|
harmonica|bagpipe|synthesizer|theremin|static|white noise|noise floor|hiss|mains hum|
feedback|echo|reverb|distortion|clipping|crackle of a record|vinyl crackle|wind noise|
baby rattle|tree falling|sonar|geiger counter|metronome
"""

OTHER_MEANINGS = """
hot dog|hotdog|corn dog|dog food|dog house|doghouse|dog show|dog ear|dog eared|
dog tired|dogged|dogma|
dogmatic|dogwood|dogfish|top dog|underdog|sun dog|prairie dog|tree bark|
bark of a tree|eagle|poppy|
rain check|raincheck|rainbow|rain coat|raincoat|rain forest|rainforest|rain gauge|reindeer|
brain|grain|drain|terrain|training|trainer|range|
drill down|drill instructor|drill sergeant|fire drill|grill|thrill|
fire alarm|fire sale|fire exit|fire escape|fire extinguisher|fire hose|fire hydrant|fire station|
fire door|fire fighter|firefighter|fire wall|firewall|fire fox|firefox|
firefly|fireman|fire someone|
fired from|under fire|ceasefire|flammable|blazer|
engine of|search engine|game engine|recommendation engine|engine oil|engine room|
engineer|engineering|
motorway|motor skill|motor home|idle chat|idle hands|idol|piston|
baby step|baby boom|baby boomer|baby oil|baby shower|baby carrot|baby food|baby sitter|babysitter|
baby powder|baby blue|baby monitor|crying shame|crying out|far cry|war cry|
battle cry|cry wolf|instant|
movie|watch|clock in|clock out|clock speed|around the clock|stop the clock|cloak|block|
tickle|ticket|sticker|sticky|tock|
wave goodbye|wave to|waving|heat wave|heatwave|brain wave|brainwave|
wavelength|new wave|shock wave|
sine wave|radio wave|sound wave|short wave|long wave|wave form|waveform|wave file|mexican wave|
season|seasoning|sea bass|sea salt|seal of|overseas|surf the web|surf the internet|surface|
coaster|roller coaster|offshore|breakfast|swelling|
siren song|serene|sirloin|policy|ambulatory|
air|air force|airport|condition|conditioner|conditional|hair conditioner|vented|event|
fan fiction|fan mail|fan club|fan base|fan of|sports fan|fantastic|fancy|
horn of|horny|unicorn|greenhorn|horn rimmed|shoe horn|shoehorn|hosting|hoping|
chain|chain of|chain reaction|supply chain|block chain|blockchain|saw a|i saw|see saw|seesaw|
kidney|kid glove|kidnap|kidding|childhood|child care|childish|child support|playlist|
shot glass|flu shot|screen shot|screenshot|snap shot|snapshot|mug shot|
long shot|big shot|money shot|
shot in the dark|photo shoot|shooting star|shotgun wedding|bamboo shoot|troubleshoot|
short|shouted|
top gun|gunk|gung ho|gun metal|jump the gun|bullet point|bulletin|ballet|bulleted|
chopper bike|helium|helmet|hello|hell|
speechless|speechwriter|talk show|talk to me|talk to support|small talk|
voice mail|voicemail|invoice|
chatbot|chat bot|charter|sneaker|sneaking|sparking|lecture note|peach|
music theory|music lesson|music shop|musical|museum|sheet music|band aid|rubber band|broadband|
bandwidth|band width|band pass|bandage|arm band|headband|husband|brand|bond|
fine tune|tune up|stay tuned|fortune|tuna|sing up|single|signal|sign|
string|sting|stinging|swinging|
cocktail|cocoa|shuttlecock|cock up|cockpit|cockroach|roast|roaster|roster|booster|
crowding|crowning|snooze|squeeze|freeze|breeze block|sneer|
jack|jackpot|jacket|hijack|jack daniels|hammock|hammer time|hamster|breaker box|circuit breaker|
baking|banking|bowling|waiting|basket|buster|frame|flake|cracking|dribbling|drifting|boring|bored|idea|
tide table|
earth|heart|breathe|notion|motion|motive|emotion|pollution|swelter
"""

FUNCTION_WORDS = """
a all also am an and another any anybody anyone anything anywhere apart are as aside at be been
before being
below besides between both but by can cannot cant could couldnt did didnt do does doesnt doing done
dont down during each either every everybody everyone everything everywhere except excepting
excluding few followed for from get gets getting give go goes going gone got had hadnt has hasnt
have havent
having he her here hers hes him his how however i id if im in instead into is isnt it its ive just
last least less let like little lot lots made make makes many may me might mine more most much must
my near neither never next no nobody none nor not nothing now of off often on once one only onto or
other others our out over own per please put quite rather really s same she shes should shouldnt
since so some somebody someone something somewhere soon still such t than thank thanks that thats
the their them then there theres these they theyre thing things this those through till to too
toward towards until up upon us use very versus via want wants was wasnt way we well were what whats
when where wheres whether which while who whose why will with within without wont would wouldnt yes
yet you your youre
about above across after again against along among around arent because behind beneath beside beyond
inside minus outside plus under underneath
"""

REQUEST_WORDS = """
remove removes removed removing removal delete deleted erase erased eliminate eliminated cut cuts
cutting take takes taken taking rid filter filtered filtering suppress suppressed silence silenced
mute muted strip stripped drop dropped scrub clean cleaned cleanup kill discard stop stops stopping
keep keeps kept keeping leave leaves leaving preserve retain save spare
find finds found finding show shows showing search look looks looking locate list detect detects
detected identify spot seek tell check know want wants wanted need needs like love
hear hears heard hearing listen listens listening contain contains contained containing include
includes including occur occurs occurring happen happens happening begin begins start starts started
end ends ending last appear appears feature features play played
audio clip clips recording recordings record recorded file files track tracks tape tapes sample
samples sound sounds noise noises noisy sounding part parts section sections moment moments bit bits
place places piece time times second seconds minute minutes instance instances occurrence
able possible anything everything something wonder seem seems
"""

QUALIFIERS = """
loud louder loudest quiet quieter soft faint distant far away close closer near nearby annoying
awful
bad horrible terrible nasty damn bloody stupid irritating disturbing obnoxious constant continuous
continual steady sudden brief short long big small large little huge tiny old new young angry noisy
high low deep sharp heavy light weak strong wet dry hot cold warm fast slow busy single several
multiple various different certain whole entire real actual typical usual main clear strange weird
background foreground front middle beginning start end top bottom left right side morning evening
afternoon night day dawn dusk sunrise sunset midnight noon summer winter spring autumn today
yesterday early late always sometimes constantly
street road highway city town village urban rural suburban traffic park garden yard backyard farm
field forest wood woods house home room kitchen bathroom bedroom office building construction site
door window wall roof floor ceiling corner sky air school hospital church beach harbour harbor pier
neighbour neighbor neighbours neighbors neighbourhood neighborhood guy guys man men woman women
person people human boy girl boys girls mother father mum mom dad parent friend worker workers
driver drivers owner farmer grandfather grandmother family brother sister son daughter wife husband
car cars truck trucks lorry lorries van vans bus buses taxi taxis cab vehicle vehicles motorcycle
motorbike scooter parked passing past parking
run runs running go going come comes coming pass passes move moves moving stand standing sit sits
sitting walk walks walking fall falls falling fly flies flying overhead outside inside
indoors outdoors blare blares blaring wail wails wailing whir whirr whirring whine whines whining
rumble rumbles rumbling roar roars roaring scream screams screaming shout shouts shouting yell
yells yelling buzz hum hums humming drone drones droning rattle rattling bang bangs banging pound
pounds pounding thump crash crashes crashing echoing ring ringing
once twice again first second third two three four five ten ongoing repeated repeatedly loudly
quietly softly gently wildly rev revving rapid chug chugging whoosh burst bursts plays playing
fit call calls cut tool tools machine power electric petrol set system
unit weather
"""


def split_phrases(text: str) -> tuple[str, ...]:
    """Return the phrases of a list whose parts are set apart by bars."""
    return tuple(phrase.strip() for phrase in text.replace("\n", "").split("|") if phrase.strip())
