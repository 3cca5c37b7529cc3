"""Tables of general knowledge behind the fact families: countries, animals, jobs, objects and word pairs."""

from minillm.builtin.wording import table

# Country | capital | continent.
COUNTRIES = table(
    """
    France | Paris | Europe
    Germany | Berlin | Europe
    Italy | Rome | Europe
    Spain | Madrid | Europe
    Portugal | Lisbon | Europe
    Norway | Oslo | Europe
    Sweden | Stockholm | Europe
    Finland | Helsinki | Europe
    Denmark | Copenhagen | Europe
    Poland | Warsaw | Europe
    Austria | Vienna | Europe
    Greece | Athens | Europe
    Ireland | Dublin | Europe
    Hungary | Budapest | Europe
    Belgium | Brussels | Europe
    Switzerland | Bern | Europe
    Romania | Bucharest | Europe
    Iceland | Reykjavik | Europe
    Japan | Tokyo | Asia
    China | Beijing | Asia
    India | New Delhi | Asia
    Thailand | Bangkok | Asia
    Vietnam | Hanoi | Asia
    South Korea | Seoul | Asia
    Nepal | Kathmandu | Asia
    Mongolia | Ulaanbaatar | Asia
    Iran | Tehran | Asia
    Iraq | Baghdad | Asia
    Pakistan | Islamabad | Asia
    Bangladesh | Dhaka | Asia
    Egypt | Cairo | Africa
    Kenya | Nairobi | Africa
    Morocco | Rabat | Africa
    Ghana | Accra | Africa
    Ethiopia | Addis Ababa | Africa
    Senegal | Dakar | Africa
    Tunisia | Tunis | Africa
    Uganda | Kampala | Africa
    Canada | Ottawa | North America
    Mexico | Mexico City | North America
    Cuba | Havana | North America
    Brazil | Brasilia | South America
    Argentina | Buenos Aires | South America
    Chile | Santiago | South America
    Peru | Lima | South America
    Colombia | Bogota | South America
    Ecuador | Quito | South America
    Uruguay | Montevideo | South America
    """
)

# Animal | group | where it lives | what it eats | size rank, larger is bigger by a clear margin | plural.
ANIMALS = table(
    """
    ant | insect | in nests in the ground | seeds and small insects | 1 | ants
    bee | insect | in hives | nectar and pollen | 1 | bees
    butterfly | insect | in gardens and meadows | nectar from flowers | 1 | butterflies
    mouse | mammal | in fields and houses | seeds and grain | 2 | mice
    frog | amphibian | near ponds and streams | insects | 2 | frogs
    robin | bird | in gardens and woods | worms and berries | 2 | robins
    squirrel | mammal | in trees | nuts and seeds | 3 | squirrels
    owl | bird | in forests and old barns | mice and other small animals | 3 | owls
    duck | bird | on ponds and lakes | plants and small water animals | 3 | ducks
    rabbit | mammal | in burrows in fields | grass and leaves | 3 | rabbits
    salmon | fish | in rivers and the sea | small fish and insects | 4 | salmon
    cat | mammal | in people's homes | meat and fish | 4 | cats
    fox | mammal | in forests and fields | mice, birds and fruit | 5 | foxes
    beaver | mammal | in rivers and lakes | bark and water plants | 5 | beavers
    eagle | bird | in mountains and on cliffs | fish and small animals | 5 | eagles
    sheep | mammal | on farms and hills | grass | 6 | sheep
    wolf | mammal | in forests | meat | 6 | wolves
    kangaroo | mammal | on the plains of Australia | grass and leaves | 6 | kangaroos
    panda | mammal | in the mountain forests of China | bamboo | 7 | pandas
    lion | mammal | on the grasslands of Africa | meat | 7 | lions
    tiger | mammal | in the forests of Asia | meat | 7 | tigers
    crocodile | reptile | in warm rivers and swamps | fish and other animals | 8 | crocodiles
    horse | mammal | on farms and open plains | grass and hay | 8 | horses
    camel | mammal | in deserts | grass and thorny plants | 8 | camels
    polar bear | mammal | in the Arctic | seals | 8 | polar bears
    giraffe | mammal | on the grasslands of Africa | leaves from tall trees | 9 | giraffes
    hippo | mammal | in and near African rivers | grass | 9 | hippos
    elephant | mammal | in Africa and Asia | grass, leaves and bark | 10 | elephants
    whale | mammal | in the ocean | small sea animals | 11 | whales
    """
)

# Job | what the person does, third person.
JOBS = table(
    """
    baker | makes bread, rolls and cakes
    nurse | cares for sick people
    pilot | flies airplanes
    farmer | grows crops and raises animals
    teacher | helps students learn
    plumber | repairs pipes and taps
    lawyer | gives people advice about the law
    tailor | makes and alters clothes
    dentist | takes care of people's teeth
    butcher | cuts and sells meat
    waiter | serves food in a restaurant
    judge | decides cases in court
    carpenter | builds things from wood
    electrician | installs and repairs electrical wiring
    firefighter | puts out fires and rescues people
    librarian | looks after books and helps readers
    gardener | plants and tends flowers and trees
    journalist | gathers and reports the news
    mechanic | repairs cars and other machines
    architect | designs buildings
    barber | cuts hair and trims beards
    florist | sells and arranges flowers
    veterinarian | treats sick animals
    astronomer | studies stars and planets
    chef | plans and cooks meals in a restaurant
    photographer | takes pictures with a camera
    translator | turns texts from one language into another
    fisherman | catches fish
    programmer | writes and tests computer code
    accountant | keeps track of a company's money
    postal worker | sorts and delivers mail
    musician | plays music for an audience
    miner | digs coal or metal out of the ground
    optician | fits people with glasses
    referee | makes sure that players follow the rules
    lifeguard | watches swimmers and rescues people in danger
    """
)

# Object | what one does with it, "-ing" form.
OBJECTS = table(
    """
    hammer | driving nails into wood
    saw | cutting wood
    broom | sweeping the floor
    needle | sewing cloth
    kettle | boiling water
    umbrella | staying dry in the rain
    pillow | resting your head while you sleep
    ladder | reaching high places
    ruler | measuring and drawing straight lines
    compass | telling which way is north
    telescope | looking at stars and planets
    microscope | looking at very small things
    thermometer | measuring temperature
    scale | measuring weight
    clock | telling the time
    calendar | keeping track of days and months
    shovel | digging holes
    corkscrew | opening bottles
    towel | drying yourself
    toothbrush | cleaning your teeth
    comb | tidying your hair
    key | opening a lock
    map | seeing where streets and towns are
    fridge | keeping food cold
    oven | baking and roasting food
    iron | removing wrinkles from clothes
    helmet | protecting your head
    rope | tying things together
    bucket | carrying water
    eraser | removing pencil marks
    stapler | fastening sheets of paper together
    lamp | lighting a room
    camera | taking pictures
    tent | sleeping outdoors
    wallet | carrying money and cards
    bookmark | keeping your place in a book
    """
)

# Word and opposite, five pairs a line.
OPPOSITES = tuple(
    (first, second)
    for row in table(
        """
        hot | cold | big | small | fast | slow | happy | sad | early | late
        open | closed | full | empty | heavy | light | rich | poor | strong | weak
        loud | quiet | young | old | wet | dry | clean | dirty | hard | soft
        thick | thin | wide | narrow | deep | shallow | brave | cowardly | polite | rude
        true | false | cheap | expensive | safe | dangerous | near | far | sweet | sour
        tall | short | smooth | rough | sharp | blunt | simple | complicated | win | lose
        buy | sell | push | pull | arrive | leave | remember | forget | laugh | cry
        begin | end | always | never | inside | outside | above | below | day | night
        summer | winter | north | south | friend | enemy | question | answer
        """
    )
    for first, second in zip(row[::2], row[1::2], strict=True)
)

# Two words of nearly the same meaning, five pairs a line.
SYNONYMS = tuple(
    (first, second)
    for row in table(
        """
        big | large | small | little | happy | glad | quick | fast | begin | start
        end | finish | smart | clever | angry | mad | sick | ill | gift | present
        house | home | shut | close | silent | quiet | scared | afraid | rich | wealthy
        hard | difficult | easy | simple | buy | purchase | help | assist | choose | pick
        answer | reply | speak | talk | tired | weary | strange | odd | brave | courageous
        road | street | rock | stone | job | task | error | mistake | idea | thought
        journey | trip | tidy | neat | repair | fix | whole | entire | correct | right
        unhappy | sad | shout | yell | jump | leap | infant | baby | forest | woods
        """
    )
    for first, second in zip(row[::2], row[1::2], strict=True)
)

# Parent | young.
YOUNG = table(
    """
    cat | kitten
    dog | puppy
    cow | calf
    horse | foal
    sheep | lamb
    pig | piglet
    goat | kid
    bear | cub
    hen | chick
    duck | duckling
    goose | gosling
    frog | tadpole
    kangaroo | joey
    swan | cygnet
    """
)
