"""Example data: small English data sets of ours for every kind of task, generated, never downloaded.

Sentences are drawn from the templates and word lists below, so the data are free to use and the same in every process.
They are for trying out and for tests, not for judging a model: real data is read by `task_data`. A model cannot simply
learn them by heart: the test split is made of templates *and* words that train does not have, words of one class occur
in the others ("the weather app", "a storm of protest"), and praise may be negated or mixed with blame.

    python example_data.py DIR      # writes every data set as files that show the formats for data of your own

All-MiniLM-L6-v2 and many other encoders read lower case only. The names in `entities` have their usual capitals, except
in one row of eight, so that context has to tell what a cased encoder could read off the first letter.
"""

import csv
import functools
import io
import json
import logging
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from command_help import CommandParser
from configuration_multitask import nearest_name

logger = logging.getLogger(__name__)

HELP = """Write the example data as files: one folder a task, each in another format, to copy for data of your own.

    python example_data.py outputs/example_data

The README.md that is written beside them explains formats and columns. Files that are there are never replaced by
other content, unless --force says so.
"""

EXAMPLES = ("topic", "sentence_type", "sentiment", "entities", "similarity", "topic_sentiment")
SPLIT_ROWS = {"train": 1200, "validation": 200, "test": 300}
TEXT_COLUMNS = ("text", "tokens", "sentence1", "sentence2")

TOPICS = ("Technology", "Weather", "Other")
SENTENCE_TYPES = ("statement", "question", "command", "informational")
SENTIMENTS = ("positive", "neutral", "negative")
ENTITY_TYPES = ("PER", "ORG", "LOC", "DATE")
ENTITY_TAGS = ("O", *(f"{prefix}-{entity}" for entity in ENTITY_TYPES for prefix in "BI"))

OPENER_SHARE, ASIDE_SHARE, LOWER_CASE_SHARE, NEGATION_SHARE = 0.3, 0.3, 0.125, 0.15
NAMELESS_SHARE = 0.25  # of the entity rows: sentences of the other tasks, without any name or date


@dataclass(frozen=True)
class Templates:
    """Sentences with `{slots}`, one a line: `seen` for train and validation, `held_out` for test."""

    seen: str
    held_out: str

    def of(self, split: str) -> list[str]:
        """The templates that a split is drawn from."""
        block = self.held_out if split == "test" else self.seen
        return [line.strip() for line in block.strip().splitlines()]


# ---------------------------------------------------------------------------------------------------------------------
# Words. `a, b | c | d` = train | validation | test; a list without `|` is the same in all three. Words may hold slots.

WORDS = {
    # topic
    "opener": "honestly, as far as I know, by the way, as my sister says, as the paper said, once again "
    "| as I heard | rumour has it, as usual, to be fair",
    "aside": "while the rain kept falling, during the football match, while my phone was charging, just before lunch, "
    "or so the neighbours claim, as the radio reported, in spite of the sunshine, with the computer still running "
    "| while the snow was melting, after the concert, as the podcast explained "
    "| while the wind howled outside, between two video calls, on the way to the theatre, as a blog reported",
    "device": "phone, laptop, tablet, router, printer, smart speaker, server, keyboard "
    "| drone, e-reader | headset, smartwatch, modem, webcam, scanner",
    "component": "chip, memory, battery, graphics card | hard disk | sensor, motherboard, touchscreen",
    "software": "browser, operating system, spreadsheet, chat app, weather app, password manager, music player "
    "| calendar app, photo editor | storm tracker, firewall, maps app, search engine, forecast widget",
    "ai_job": "recognise faces, translate speech, spot clouds in photos, play chess | sort mail "
    "| predict rainfall, compose music, drive a bus",
    "weather": "heavy rain, thick fog, a thunderstorm, light snow, strong wind, hail, a heatwave, drizzle "
    "| sleet, a warm breeze | a blizzard, a downpour, black ice, a tornado, frost, haze",
    "sky": "sunny, cloudy, frosty, stormy, gloomy, mild | overcast, chilly | foggy, windy, icy, sweltering",
    "region": "the valley, the north, the old town, the city, the mountains, the islands "
    "| the suburbs, the lake district | the desert, the south-west, the capital, the highlands",
    "when": "tonight, on Monday, this weekend, tomorrow morning, next week | on Sunday, by noon "
    "| by the end of the month, on Friday, around midnight",
    "since": "Monday, last week, the weekend, Easter | yesterday | the start of May, Thursday",
    "turn": "rise, fall, drop below zero, climb to thirty | stay low | swing, sink, reach a record",
    "venue": "museum, stadium, town hall, market, library, theatre | gallery, airport "
    "| opera house, harbour, zoo, swimming pool",
    "dish": "lentil soup, roast chicken, lemon cake, fried rice, apple pie | mushroom stew "
    "| snow peas with ginger, pumpkin bread, a cloud of meringue, fish tacos",
    "team": "home team, visitors, champions, under-21 side | national team | Thunder, underdogs, women's eleven",
    "politics": "tax, housing, pension, trade | border | climate, broadband, school",
    "goods": "bread, petrol, coffee, winter coats | cheese | umbrellas, phones, olive oil",
    "record": "Cold Rain, Paper Boats, The Machine, Long Summer | Blue Static | Silicon Heart, Snowblind, Second Wind",
    "job": "nurse, bus driver, lawyer, teacher, farmer | plumber | programmer, pilot, judge, forecaster",
    # sentence type
    "person": "Maria, Tom, the manager, our neighbour, the new trainee | Lucy, the caretaker "
    "| Hassan, my uncle, the accountant, Ingrid",
    "object": "the keys, the blue folder, my umbrella, the ladder, the coffee machine, the invitations "
    "| the spare tyre, the guest list | the toolbox, the receipts, the projector, the green suitcase, the house plants",
    "place": "kitchen, library, meeting room, garage, post office, cafeteria "
    "| basement, pharmacy | laundry room, town archive, reception, workshop",
    "action": "water the plants, book a table, renew the contract, back up the files, fill in the form, lock the door, "
    "call the office, return the parcel | sign the lease, clean the filter "
    "| cancel the subscription, print the tickets, feed the cat, check the brakes, update the address",
    "future": "tomorrow, on Tuesday, next week, after lunch | tonight | before the holidays, on Saturday, at five",
    "past": "yesterday, last night, on Monday, two weeks ago | this morning | last winter, on Thursday, a while ago",
    "animal": "bat, cow, tortoise, snow leopard, goldfish | badger | hedgehog, dolphin, camel, sparrow",
    "substance": "copper, salt, rubber, beeswax, lithium | chalk | zinc, amber, glycerine, tin",
    "term": "calendar, muscle, salary, candle | museum | focus, virus, dial",
    "number": "three, seven, twelve, twenty, forty, ninety | five, thirty | six, fifteen, fifty, two hundred",
    # sentiment
    "aspect": "breakfast, film, concert, hotel, tour, course, train ride, restaurant, novel, exhibition "
    "| play, flight | cruise, lecture, campsite, musical, workshop, boat trip",
    "rival": "dessert, lobby, first chapter, car park, ticket price | wine list | gift shop, opening act, bus transfer",
    "good": "excellent, wonderful, pleasant, impressive, great, lovely, brilliant, perfect, beautiful, "
    "fantastic, nice, amazing, superb, enjoyable, thrilling, memorable "
    "| delightful, terrific | outstanding, charming, splendid, marvellous, magnificent",
    "bad": "terrible, horrible, disappointing, poor, dreadful, boring, annoying, bad, awful, ugly, "
    "weak, unpleasant, tedious, painful, unbearable, worthless "
    "| miserable, shoddy | appalling, lousy, pathetic, dismal, abysmal",
    "liked": "loved, enjoyed, liked | adored | cherished, fancied, admired",
    "disliked": "hated, disliked, regretted | detested | loathed, resented, despised",
    "praise": "won us over, made our day, was a joy, was worth every cent, keeps its promises, is a gem, "
    "left us smiling, was better than we had hoped, deserves a prize, gets full marks from me, felt like a gift, "
    "made us laugh with joy, is my new favourite, was just right, is something to be proud of "
    "| cheered us up, is a must | made our week, was a treat, has my warm recommendation, put a smile on every face, "
    "is a small masterpiece, made us forget the {bad} {rival}",
    "blame": "let us down, ruined our day, was a pain, was a waste of money, breaks its promises, is a joke, "
    "left us angry, was worse than we had feared, deserves no stars, gets the lowest marks from me, "
    "felt like a punishment, made us cry with rage, is the worst so far, was a disaster, is something to be ashamed of "
    "| drove us mad, is a scam | spoiled our week, was a nightmare, gave us a headache, "
    "is a total failure, upset everybody, made us miss the {good} {rival}",
    "remark": "takes two hours, was on {day}, is in {town}, has two parts, was okay, is what it is, follows a plan, "
    "was the same as last year, was average, ends at ten, is on the list, costs as much as the others "
    "| opens on {day}, was moved | lasts until {day}, is run by a company from {town}, was fair enough, was so-so, "
    "appears in the calendar, has a {rival}",
    "day": "Monday, Wednesday, Saturday, the first of June | Sunday | Friday, the last day of May, Tuesday",
    "town": "the next town, Lyon, abroad, the coast | Porto | Graz, the city centre, Leeds",
    # topic and sentiment of one text
    "Technology": "the screen of my new phone, the update of the chat app, this laptop, the weather app, "
    "our home router, the search function, the voice assistant, the battery of the tablet "
    "| the photo editor, my old drone | the storm tracker on my watch, this headset, the online form, the maps app, "
    "the game console",
    "Weather": "the rain on Sunday, this summer heat, the snow in the valley, the sunshine this week, the fog at sea, "
    "the cold wind, the weather during the match, the thunderstorm last night "
    "| the frost in April, the mild evening | the drizzle by the lake, this endless grey sky, the first snowfall, "
    "the breeze on the terrace, the heatwave in August",
    "Other": "the soup at the market, this novel, the museum tour, the band on the main stage, the referee, "
    "the film about a storm, the bus to the airport, the course on public speaking "
    "| the cheese plate, our new landlord | the opera on the lake, the wedding speech, this crime series, "
    "the chicken curry, the play about a hacker",
    # entities: the upper-case slots are entities, all others are plain words
    "PER": "{first} {last}, {first} {last}, {first}, {last}, {either}, {first} {either}",
    "ORG": "{company}, {company}, {company} {suffix}, University of {city}, {city} {club}, {brand}",
    "LOC": "{city}, {city}, {country}, {either}, {either}, {last} {street}",
    "DATE": "{weekday}, {month} {number_of_day}, {month} {year}, {year}, last {weekday}",
    "first": "Anna, Peter, Marta, Kenji, Olga, Samuel, Aisha, Pierre, Nina, Carlos "
    "| Helen, Igor, Leila | Fatima, Bruno, Saskia, Tomas, Grace, Wei, Dmitri, Elena",
    "last": "Novak, Schmidt, Okafor, Tanaka, Garcia, Larsen, Rossi, Singh, Dubois, Walker "
    "| Haddad, Costa, Weber | Lindqvist, Moreau, Kowalski, Mbeki, Fischer, Romano, Yamada, Price",
    "either": "Jordan, Lincoln, Madison, Florence, Hamilton | Chelsea, Orlando "
    "| Washington, Georgia, Sydney, Austin, Paris, Victoria",
    "city": "Oslo, Lima, Nairobi, Hamburg, Boston, Osaka, Krakow, Toronto | Dublin, Quito "
    "| Tallinn, Marseille, Bogota, Hanoi, Denver, Porto, Accra",
    "country": "Norway, Kenya, Brazil, Japan, Poland, Canada | Ireland, Chile | Estonia, Vietnam, Ghana, Peru",
    "street": "Street, Avenue, Square",
    "company": "Norwick, Veltra, Bluepeak, Halden, Orbis, Quantel, Fernway, Corvex | Tessaro, Milbrook "
    "| Zentara, Kestrel, Ambrook, Lumiq, Stratton, Pelagos, Overhill",
    "suffix": "Systems, Bank, Motors, Foods, Airlines",
    "club": "United, Times, Museum",
    "brand": "Apple, Shell, Target, Oracle | Amazon, Visa | Orange, Gap, Ford, Virgin, Sky",
    "weekday": "Monday, Tuesday, Wednesday, Thursday | Friday | Saturday, Sunday",
    "month": "January, March, May, July, October | April, June | August, September, December",
    "number_of_day": "1, 4, 7, 12, 15, 19, 23, 28 | 3, 17 | 2, 9, 14, 21, 30",
    "year": "1987, 1994, 2003, 2011, 2018 | 1999, 2015 | 1979, 2006, 2020, 2024",
    "fruit": "an apple, a target, the shell, some plums | a lemon | an orange, a wide gap, the open sky",
    "role": "director, spokeswoman, engineer, striker, professor | curator | architect, goalkeeper, minister, editor",
    "thing": "contract, bridge, laboratory, exhibition, factory | archive | railway, festival, satellite, shop",
}

# ---------------------------------------------------------------------------------------------------------------------
# Templates

TOPIC = {
    "Technology": Templates(
        seen="""
        the new {device} stopped working after the update
        {software} data now goes to every {device} in the house
        engineers at a start-up in {region} rewrote the {software}
        my {device} overheats whenever the {software} is open
        the company recalled its {device} because of a faulty {component}
        a security hole in the {software} exposed thousands of passwords
        the forecast for {component} sales is {sky}
        downloading the {software} took all night over the slow connection
        the {software} shows {weather} on a map, yet it crashes on any {device}
        researchers trained a neural network to {ai_job}
        we moved the photos to the cloud and sold the old {device}
        a {component} shortage has frozen production of the {device}
        a bug in the {software} reported {weather} that never came
        her {device} has twice the memory of mine
        support told the {job} to restart the {device}
        the {venue} replaced its paper tickets with a {device}
        the {job} cannot open the {software}
        this {device} will not switch on {when}
        which {device} has the better {component}
        the {software} asks the {job} for a code by text message
        """,
        held_out="""
        nobody at the {venue} can log in since the {software} was moved
        sales of this {device} cooled off when a cheaper model came out
        with the latest patch the {software} drains the {component}
        a program that will {ai_job} runs on a single {component}
        users flooded the forum with complaints about the {software}
        does the {device} work with the {software} at all
        {weather} is only an icon in the {software}
        the {job} cannot get the {device} out of sleep mode
        a storm of spam hit the {device} {when}
        half of {region} still uses a {device} from ten years ago
        """,
    ),
    "Weather": Templates(
        seen="""
        {weather} is expected in {region} {when}
        {weather} closed the road to {region} {when}
        temperatures in {region} will {turn} {when}
        the light over {region} turned strange before {weather} arrived
        according to the app on my {device}, {weather} will reach us {when}
        it has been {sky} in {region} since {since}
        take a coat to the {venue}, because {weather} is on the way
        {weather} left {region} without power and without a single {device} online
        gusts tore the roof off the {venue}
        after days of {weather}, the river near {region} burst its banks
        satellites see {weather} forming near {region}
        the match at the {venue} was called off because of {weather}
        the {job} is hoping for {weather} {when}
        the {sky} afternoons in {region} are hard to bear
        will it be {sky} at the {venue} {when}
        it gets {sky} early in {region} at this time of year
        the {job} got caught in {weather}
        the thermometer at the {venue} has not moved since {since}
        the maps for {when} show {sky} skies
        {weather} came in over {region}, just as the experts had said
        """,
        held_out="""
        you could barely see the {venue} through {weather}
        the warning for {region} was raised as {weather} moved inland
        nothing but {sky} days ahead for {region}, the {device} says
        {weather} spoiled the picnic at the {venue}
        a cold front pushes through {region} {when}
        the barometer at the {venue} has been dropping since {since}
        the {job} was stranded by {weather}
        the computer models disagree about {weather} in {region}
        expect it to be {sky} outside the {venue} {when}
        the clouds over {region} should break up {when}
        """,
    ),
    "Other": Templates(
        seen="""
        the {venue} opens a new exhibition {when}
        she brought {dish} to the party at the {venue}
        the {team} won by two points in {region}
        a storm of protest followed the {politics} vote
        the {politics} debate grew heated and the mood was {sky}
        prices of {goods} rose in {region} {when}
        the mouse behind the fridge has eaten {dish}
        the singer released a record called {record}
        {dish} is on the menu at the {venue} {when}
        a novel about a {job} in {region} won the prize
        the {job} joined the strike in {region}
        a flood of tourists reached the {venue} {when}
        the bank froze the account of the {job}
        the {team} has a new coach, a former {job}
        the {job} sold a {device} to pay for {goods}
        they got married at the {venue} and danced to {record}
        shops in {region} ran out of {goods} {when}
        the {job} goes to court over a {politics} bill
        we queued at the {venue} to see {record}
        the recipe for {dish} takes an hour
        """,
        held_out="""
        critics gave the film {record} a chilly reception
        the {job} retired after forty years at the {venue}
        the minister weathered another scandal over {politics} policy
        first grease the tray, then bake {dish} until golden
        fans of the {team} rained insults on the referee
        all seats for {record} at the {venue} were gone {when}
        the court in {region} ruled on the {politics} law
        someone left a {device} on the bus and the {job} handed it in
        can you teach the {job} to cook {dish}
        a wave of {goods} imports worries shops in {region}
        """,
    ),
}

# A label says what the sentence asks of the listener: nothing (it tells of one event or opinion), an answer, an act
# (a request phrased as a question is a command), or it states what holds in general.
SENTENCE_TYPE = {
    "statement": Templates(
        seen="""
        I left {object} in the {place} {past}
        {person} forgot {object} again
        we had lunch near the {place} {past}
        I think {person} is right about {object}
        {person} never answers when I ask about {object}
        I wonder where {person} put {object}
        they told me to {action}
        you should have seen {person} in the {place} {past}
        nobody knows why {person} sold {object}
        {person} asked how to {action}
        it rained, so {person} stayed in the {place}
        I am tired of cleaning {object}
        {person} promised to {action} {future}
        the {place} was closed {past}
        we could not {action} because {person} had {object}
        in the end {person} did not {action}
        I have never been to the {place}
        whenever I {action}, something goes wrong
        how kind of {person} to {action}
        we do not know what {person} did in the {place}
        that was {person} {past}, not me
        the {place} is where {person} keeps {object}
        """,
        held_out="""
        how glad I was to find {object}
        {person} was supposed to {action}, but did not
        when I was younger I avoided the {place}
        if only {person} had remembered {object}
        that is not what {person} said about {object}
        somebody must have moved {object} out of the {place}
        I have no idea what {object} cost
        what a mess {person} made of the {place}
        do as I did, {person} said to me {past}
        {person} found {object} near the {place} {past}
        {person} has kept {object} for years
        we were too late to {action}
        I miss the old {place}
        she and {person} argued about {object} {past}
        """,
    ),
    "question": Templates(
        seen="""
        where did {person} put {object}
        how do I {action}
        what time does the {place} open {future}
        has anybody seen {object}
        could you tell me how to {action}
        do we have to {action} {future}
        why is {object} in the {place}
        is it true that {person} sold {object}
        who is going to {action} {future}
        {person} has {object}, right
        did {person} remember to {action}
        any chance that the {place} is open {future}
        am I allowed to {action} in the {place}
        can {person} still {action}
        would it be possible to {action} {future}
        should we {action} or wait
        when will {person} {action}
        have you told {person} about {object}
        what does {object} cost
        is there a better way to {action}
        what did {person} want in the {place} {past}
        you want me to {action}, do you
        """,
        held_out="""
        you have not seen {object} by any chance
        and what if {person} cannot {action}
        so the {place} is closed {future}, is it
        how long will it take {person} to {action}
        whose turn is it to {action}
        would it be cheaper to replace {object}
        tell me, is {object} really in the {place}
        may I ask who left {object} here {past}
        {person} wants to {action}, or did I get that wrong
        where can I {action}
        what is wrong with {object}
        who keeps {object} in the {place}
        is {person} in the {place}
        how much is {object}
        """,
    ),
    "command": Templates(
        seen="""
        {action} before you leave
        please {action} {future}
        do not touch {object}
        put {object} back in the {place}
        go to the {place} and ask for {person}
        tell {person} to {action}
        could you please {action}
        could you {action} {future}?
        make sure that {person} gets {object}
        stop leaving {object} in the {place}
        bring {object} to the {place} {future}
        ask {person} why {object} is broken
        never {action} without {person}
        remember to {action} {future}
        hand me {object}
        wait in the {place} until {person} calls
        you must {action} {future}
        would you please {action}
        get {object} out of the {place}
        be in the {place} {future}
        have {person} {action} {future}
        I need you to bring {object}
        """,
        held_out="""
        would you mind handing me {object}?
        whatever you do, keep {object} away from {person}
        first {action}, then wait in the {place}
        you are to {action} {future}, no excuses
        find out what {person} wants with {object}
        I want you to {action} right now
        kindly {action} once {person} is here
        no talking about {object} in the {place}
        will you please take {object} to the {place}
        take {object} with you
        please help {person} to {action}
        leave {object} where it is
        call {person} before you {action}
        show {person} the {place}
        """,
    ),
    "informational": Templates(
        seen="""
        the {place} opens at {number} minutes past eight on weekdays
        a {animal} sleeps up to {number} hours at a time
        {substance} melts faster when mixed with {substance}
        visitors can {action} at the front desk
        a {animal} lives in a group of about {number}
        a ticket to the {place} costs {number} euros and is valid for one day
        the word {term} comes from Latin
        to {action}, guests use the form at the {place}
        this guide explains how to {action}
        about {number} thousand tonnes of {substance} are recycled every year
        the {place} was founded {number} decades ago
        {substance} is used in batteries and paint
        customers who {action} online receive a discount
        how fast {substance} dissolves depends on the temperature
        in general, it takes {number} minutes to {action}
        the {place} is open to everybody over the age of {number}
        when heated, {substance} turns soft
        a young {animal} stays with its mother for {number} months
        the rules of the {place} are listed on page {number}
        """,
        held_out="""
        {substance} was discovered by chance {number} decades ago
        the fee covers {number} visits to the {place}
        what makes a {animal} unusual is its long memory
        unlike a dog, a {animal} has {number} teeth
        members may {action} free of charge
        where a {animal} spends the winter is shown on page {number}
        doors close {number} minutes before the tour of the {place} begins
        please note that the {place} has room for {number} people
        the oldest known use of {term} is {number} centuries old
        {substance} is heavier than water
        """,
    ),
}

SENTIMENT = {
    "positive": Templates(
        seen="""
        the {aspect} was {good}
        I {liked} the {aspect} and would come back for it
        not a single complaint about the {aspect}
        the {aspect} was not {bad} at all, quite the opposite
        I expected the {aspect} to be {bad}, but it turned out {good}
        despite a {bad} {rival}, the {aspect} won us over
        thanks to the {good} {aspect} we stayed until {day}
        never have I seen a more {good} {aspect}
        the {aspect} could not have been better
        the {aspect} proved the {bad} reviews wrong
        even a {bad} {rival} could not spoil the {aspect}
        finally a {aspect} that keeps its promises
        everybody at home still talks about the {good} {aspect}
        there was nothing {bad} about the {aspect}
        critics find the {aspect} {bad}, but they are mistaken
        I cannot think of anything {bad} to say about the {aspect}
        the {aspect} {praise}
        to be honest, the {aspect} {praise}
        the {aspect} {praise}, and the {rival} was {good}
        I keep telling people that the {aspect} {praise}
        in short, this {aspect} {praise}
        as for the {aspect}, it {praise}
        my parents say that the {aspect} {praise}
        the {aspect} in {town} {praise}
        all in all, our {aspect} {praise}
        the {rival} {blame}, but the {aspect} {praise}
        I would recommend the {aspect} to anybody
        what a {good} {aspect} that was
        a {good} {aspect} with a {good} {rival}
        we all found the {aspect} {good}
        this was a {good} {aspect} in every way
        we left the {aspect} with a big smile
        you cannot go wrong with the {aspect}
        I am so happy that we booked the {aspect}
        the {aspect} was worth every cent
        the {aspect} was a joy from start to finish
        the {rival} was {bad}, but I would still book the {aspect} again
        why was I ever afraid of the {aspect}
        """,
        held_out="""
        I was wrong to worry about the {aspect}
        I would go back to the {aspect} at once
        far from {bad}, the {aspect} made our week
        the {rival} let us down a little, yet the {aspect} made up for everything
        you will not regret the {aspect}
        it is hard to find fault with the {aspect} or the {rival}
        what made our holiday was the {good} {aspect}
        five stars for this {good} {aspect}
        we were more than happy with the {aspect}
        my parents {liked} the {aspect} and the {rival}
        everything considered, the {aspect} {praise}
        it has to be said that the {aspect} {praise}
        on top of that, this {aspect} {praise}
        my honest opinion is that the {aspect} {praise}
        a truly {good} {aspect}, and the {rival} was {good} too
        the {aspect} deserves all the praise it gets
        I could do the {aspect} again and again
        """,
    ),
    "neutral": Templates(
        seen="""
        the {aspect} was booked for {day}
        the {aspect} and the {rival} are the same as last year
        the {aspect} was neither {good} nor {bad}
        some called the {aspect} {good}, others called it {bad}
        we paid for the {aspect} by card on {day}
        I have not made up my mind about the {aspect}
        the brochure describes the {rival} of the {aspect}
        my neighbour asked whether the {aspect} was {good}
        the {aspect} was about what we expected, no more and no less
        half of the {aspect} was {good}, the other half {bad}
        a review of the {aspect} appears on {day}
        they changed the {rival} before the {aspect} on {day}
        the {aspect} has a {rival}, as most do
        the {aspect} has {good} moments and {bad} ones
        I cannot say if the {aspect} was {good}
        the {aspect} was all right, nothing special
        the {aspect} {remark}
        to be honest, the {aspect} {remark}
        the {aspect} {remark}, and the {rival} was new
        I keep telling people that the {aspect} {remark}
        in short, this {aspect} {remark}
        as for the {aspect}, it {remark}
        my parents say that the {aspect} {remark}
        the {aspect} in {town} {remark}
        all in all, our {aspect} {remark}
        the {aspect} is in {town}
        there are two ways to get to the {aspect}
        I will tell you about the {aspect} on {day}
        we were at the {aspect} on {day}
        the {aspect} was okay
        for some the {aspect} is too long, for some too short
        the {aspect} was announced on {day}
        a {good} {rival}, a {bad} {aspect}, so all in all a draw
        it is a {aspect} like any other
        """,
        held_out="""
        the {aspect} has its strong points and its weak points
        somebody else will have to judge whether the {aspect} is {good} or {bad}
        the {aspect} is run by a company from {town}
        a survey asks guests if the {rival} is {bad}
        details of the {aspect} are on the back of the ticket
        for the price, the {aspect} was average
        the {aspect} was moved from {day} to the following week
        I can take the {aspect} or leave it
        the {aspect} takes place on {day}
        a description of the {aspect} hangs next to the {rival}
        my parents heard of the {aspect} on {day}
        everything considered, the {aspect} {remark}
        it has to be said that the {aspect} {remark}
        on top of that, this {aspect} {remark}
        for your information, the {aspect} {remark}
        an average {aspect}, nothing {good}, nothing {bad}
        tickets for the {aspect} can be changed until {day}
        the {aspect} and the {rival} are sold together
        """,
    ),
    "negative": Templates(
        seen="""
        the {aspect} was {bad}
        I {disliked} the {aspect} and want my money back
        the {aspect} was not {good}, whatever the brochure says
        I expected a {good} {aspect} and got a {bad} one
        despite a {good} {rival}, the {aspect} let us down
        the {aspect} could have been {good}, had anybody cared
        so much for the {good} {aspect} they advertise
        nothing about the {aspect} was {good}
        because of the {bad} {aspect} we left before {day}
        never again will I pay for such a {bad} {aspect}
        everybody praised the {aspect}, but to us it was {bad}
        the {aspect} stopped being {good} after {day}
        even a {good} {rival} could not save the {aspect}
        I hoped for a {good} {aspect} in vain
        critics find the {aspect} {good}, but they are mistaken
        I cannot think of anything {good} to say about the {aspect}
        the {aspect} {blame}
        to be honest, the {aspect} {blame}
        the {aspect} {blame}, and the {rival} was {bad}
        I keep telling people that the {aspect} {blame}
        in short, this {aspect} {blame}
        as for the {aspect}, it {blame}
        my parents say that the {aspect} {blame}
        the {aspect} in {town} {blame}
        all in all, our {aspect} {blame}
        the {rival} {praise}, but the {aspect} {blame}
        I would not recommend the {aspect} to anybody
        what a {bad} {aspect} that was
        a {bad} {aspect} with a {bad} {rival}
        we all found the {aspect} {bad}
        this was a {bad} {aspect} in every way
        we left the {aspect} with a headache
        you had better stay away from the {aspect}
        I am sorry that we booked the {aspect}
        the {aspect} was a waste of money
        the {aspect} was a pain from start to finish
        the {rival} was {good}, but I would never book the {aspect} again
        why did I ever look forward to the {aspect}
        """,
        held_out="""
        I wish I could say the {aspect} was {good}
        if this is a {good} {aspect}, I would hate to see a {bad} one
        the {rival} was fine, which cannot be said of the {aspect}
        save your money and skip the {aspect}
        only the {good} {rival} kept us from walking out of the {aspect}
        we are still waiting for an apology for the {aspect}
        I would rather stay at home than go back to the {aspect}
        what spoiled our holiday was the {bad} {aspect}
        zero stars for this {bad} {aspect}
        we were less than happy with the {aspect}
        my parents {disliked} the {aspect} and the {rival}
        everything considered, the {aspect} {blame}
        it has to be said that the {aspect} {blame}
        on top of that, this {aspect} {blame}
        my honest opinion is that the {aspect} {blame}
        a truly {bad} {aspect}, and the {rival} was {bad} too
        the {aspect} deserves every complaint it gets
        the {aspect} left us tired and angry
        """,
    ),
}

TOPIC_SENTIMENT = {
    "positive": Templates(
        seen="""
        {subject} was {good}
        I really {liked} {subject}
        {subject} made my {day}
        {subject} was not {bad} at all
        I feared the worst, but {subject} was {good}
        we could not get enough of {subject}
        {subject} turned a {bad} day into a {good} one
        {subject} is just what we needed
        there is nothing {bad} about {subject}
        {subject} {praise}
        everybody agrees that {subject} {praise}
        what a {good} thing {subject} is
        I cannot think of anything {bad} to say about {subject}
        some find {subject} {bad}, but they are mistaken
        nobody should complain about {subject}
        """,
        held_out="""
        I take back everything {bad} I said about {subject}
        whoever is behind {subject} deserves a medal
        we were more than happy with {subject}
        more of {subject} would be fine with us
        {subject} beat all our hopes
        who could complain about {subject}
        this much is sure, {subject} {praise}
        most of us found {subject} {good}
        a {good} memory is {subject}
        """,
    ),
    "neutral": Templates(
        seen="""
        {subject} was neither {good} nor {bad}
        we talked about {subject} on {day}
        {subject} is like it was last year
        some find {subject} {good}, others find it {bad}
        I have no opinion on {subject}
        there is a report about {subject} from {day}
        {subject} was about average
        they asked us whether {subject} was {good}
        I noticed {subject} on {day}
        {subject} came up on {day}
        everybody agrees that {subject} was okay
        {subject} is one of those things
        I cannot say if {subject} was {good}
        a friend asked about {subject}
        """,
        held_out="""
        I can live with {subject} or without it
        {subject} has its good and its bad sides
        whether {subject} is {bad} depends on whom you ask
        {subject} was mentioned twice on {day}
        we were told of {subject} by a neighbour
        {subject} is nothing out of the ordinary
        this much is sure, {subject} was on {day}
        most of us found {subject} so-so
        a note on {subject} is in the file
        """,
    ),
    "negative": Templates(
        seen="""
        {subject} was {bad}
        I really {disliked} {subject}
        {subject} ruined my {day}
        {subject} was not {good} at all
        I had high hopes, but {subject} was {bad}
        we have had enough of {subject}
        {subject} turned a {good} day into a {bad} one
        {subject} is the last thing we needed
        there is nothing {good} about {subject}
        {subject} {blame}
        everybody agrees that {subject} {blame}
        what a {bad} thing {subject} is
        I cannot think of anything {good} to say about {subject}
        some find {subject} {good}, but they are mistaken
        nobody should have to put up with {subject}
        """,
        held_out="""
        I take back everything {good} I said about {subject}
        whoever is behind {subject} ought to apologise
        we were less than happy with {subject}
        less of {subject} would be fine with us
        {subject} fell short of all our hopes
        who on earth would praise {subject}
        this much is sure, {subject} {blame}
        most of us found {subject} {bad}
        a {bad} memory is {subject}
        """,
    ),
}

ENTITIES = Templates(
    seen="""
    {PER} moved from {LOC} to {LOC} before {DATE} .
    {ORG} opened a new {thing} in {LOC} after {DATE} .
    {PER} , the {role} of {ORG} , was born in {LOC} .
    the {role} told {ORG} that {PER} had left .
    before {DATE} , {ORG} and {ORG} signed a {thing} deal .
    {PER} ate {fruit} on the way to {LOC} .
    we met {PER} and {PER} at the {thing} in {LOC} .
    shares of {ORG} fell after {PER} resigned as {role} .
    {LOC} will host the {thing} until {DATE} .
    according to {PER} , {ORG} never paid for the {thing} .
    it was {PER} who sold the {thing} to {ORG} .
    the {thing} near {LOC} has been closed since {DATE} .
    {ORG} hired {PER} away from {ORG} .
    no {role} has seen {fruit} since {DATE} .
    a {role} found {fruit} in the {thing} .
    is {PER} still with {ORG} in {LOC} ?
    flights between {LOC} and {LOC} resume after {DATE} .
    {PER} 's {role} called from {LOC} .
    """,
    held_out="""
    both {PER} and the {role} of {ORG} flew to {LOC} .
    when {PER} visited {LOC} around {DATE} , the {thing} was gone .
    {LOC} 's largest {thing} belongs to {ORG} .
    asked about {ORG} , {PER} just looked at {fruit} .
    until {DATE} , {PER} was a {role} in {LOC} .
    there was {fruit} beside the {thing} , said the {role} .
    the people of {LOC} remember {PER} as a {role} .
    {ORG} has blamed {ORG} for the {thing} in {LOC} .
    her letter to {PER} is dated {DATE} .
    by {DATE} , a {role} from {ORG} had bought the {thing} .
    does anyone in {LOC} know {PER} ?
    rivals of {ORG} , {PER} among them , met in {LOC} .
    """,
)

# Similarity: a sentence says who does what and where. `a/b` are two ways to say the same; a line holds near things.
AGENTS = (
    "a man/a guy, a woman/a lady, a child/a kid "
    "| a teenager/an adolescent | a gentleman/an elderly man, a toddler/a small boy",
    "a dog/a hound, a cat/a kitten | a horse/a pony | a puppy/a young dog, a rabbit/a bunny",
    "a doctor/a physician, a police officer/a cop "
    "| a teacher/a schoolteacher | a lawyer/an attorney, a flight attendant/a steward",
    "a family/a family of four, a crowd/a large group of people "
    "| a couple/a married couple | a football team/a team of players, a tour group/a group of travellers",
)
ACTIONS = (
    "eating an apple/having an apple, drinking coffee/sipping a cup of coffee "
    "| cooking rice/making rice | chewing on bread/eating some bread, boiling soup/preparing soup",
    "running fast/sprinting, walking slowly/strolling, jumping up and down/hopping "
    "| climbing a wall/scaling a wall | jogging along/running at an easy pace, crawling/creeping on all fours",
    "playing a guitar/strumming a guitar, singing a song/performing a song "
    "| dancing wildly/dancing with abandon | beating a drum/playing the drums, whistling a tune/whistling a melody",
    "sleeping/taking a nap, resting/relaxing "
    "| sitting still/sitting without moving | dozing off/falling asleep, lying down/stretching out",
    "fixing a car/repairing an automobile, painting a fence/putting paint on a fence "
    "| building a shed/putting up a shed | washing a truck/cleaning a lorry, cutting down a tree/felling a tree",
)
PLACES = (
    "in the park/in a public garden, on the lawn/on the grass "
    "| in the forest/in the woods | in a meadow/in a grassy field, by the flower bed/next to the flowers",
    "on the beach/at the seaside, near the river/by a stream "
    "| beside the lake/at the lakeside | at the harbour/in the port, on the shore/along the coast",
    "in the kitchen/in a kitchen, in the living room/in the lounge "
    "| in the hallway/in the corridor | in the bedroom/in a bedroom, in the attic/under the roof",
    "on the street/on the road, at the station/in a train station "
    "| on the bridge/upon a bridge | in the car park/in a parking lot, at the market/among the market stalls",
)
SCENES = Templates(
    seen="""
    {agent} is {action} {place}
    there is {agent} {action} {place}
    {place}, {agent} is {action}
    {agent} was {action} {place}
    """,
    held_out="""
    in this picture {agent} is {action} {place}
    we saw {agent} {action} {place}
    {agent}, who is {place}, is {action}
    """,
)
NEGATED_SCENES = Templates(
    seen="{agent} is not {action} {place}",
    held_out="it is not true that {agent} is {action} {place}",
)
SCENE_WEIGHTS = {"agent": 0.3, "action": 0.45, "place": 0.25}
NEAR_SIMILARITY, NEGATION_FACTOR = 0.4, 0.6

ENDINGS = {
    "statement": (".", ".", ".", ".", "", "!"),
    "question": ("?", "?", "?", "?", "", "."),
    "command": (".", ".", ".", "", "", "!"),
    "informational": (".", ".", ".", ".", ".", ""),
}
PLAIN_ENDINGS = (".", ".", ".", "", "!")
NAME_WORDS = frozenset(re.findall(r"[A-Z]\w+", " ".join(WORDS.values())))

README = """# Example data

Written by `python example_data.py`; generated from templates, free to use. Every folder holds one task in the three
files `train`, `validation` and `test`, in a different format each: bring your own data in any of them.

| folder | format | columns |
|---|---|---|
| `topic` | CSV with a header line | `text`, `label`: {topics} |
| `sentence_type` | TSV with a header line | `text`, `label`: {sentence_types} |
| `sentiment` | JSON lines, one object a line | `text`, `label`: {sentiments} |
| `entities` | CoNLL: `token tag` lines, an empty line between sentences | `tokens`, `ner_tags` (BIO): {entity_types} |
| `similarity` | Parquet | `sentence1`, `sentence2`, `score`: 0 (unrelated) to 1 (same meaning) |
| `topic_sentiment` | CSV with a header line | `text`, `topic`, `sentiment`: two labels on every row |

{rows}. The test files are made of sentence patterns and words that the train files do not have.
A CoNLL file has no header: name its columns where you read it, `column_names: [tokens, ner_tags]`.
"""

Row = dict[str, Any]
RowMaker = Callable[[int, str, random.Random], Row]


def generate(name: str, seed: int = 0) -> DatasetDict:
    """Return an example data set with its splits `train`, `validation` and `test`.

    Args:
        name (str): One of `EXAMPLES`. Columns: `text`, `label` (topic, sentence_type, sentiment), `tokens`, `ner_tags`
            (entities), `sentence1`, `sentence2`, `score` in 0..1 (similarity), `text`, `topic`, `sentiment`
            (topic_sentiment). Labels are `ClassLabel`s.
        seed (int): Draws other sentences from the same templates and words. The same seed gives the same rows in every
            process and on every machine.

    Raises:
        ValueError: for a name that is not in `EXAMPLES`.
    """
    if name not in EXAMPLES:
        raise ValueError(
            f"The built-in example data sets are {', '.join(EXAMPLES)}; got {name!r}.{nearest_name(name, EXAMPLES)}"
        )
    make_row, features = ROW_MAKERS[name]
    splits = {
        split: Dataset.from_list(draw_rows(make_row, split, count, random.Random(f"{name} {split} {seed}")), features)
        for split, count in SPLIT_ROWS.items()
    }
    return DatasetDict(splits)


def draw_rows(make_row: RowMaker, split: str, count: int, rng: random.Random) -> list[Row]:
    """Draw `count` rows with distinct texts; the index given to `make_row` cycles through the classes."""
    rows: dict[tuple[str, ...], Row] = {}
    for _ in range(100 * count):
        row = make_row(len(rows), split, rng)
        rows.setdefault(tuple(str(row[column]) for column in TEXT_COLUMNS if column in row), row)
        if len(rows) == count:
            break
    assert len(rows) == count, f"the templates give only {len(rows)} distinct rows for {split}, {count} are needed"
    drawn = list(rows.values())
    rng.shuffle(drawn)
    return drawn


@functools.cache
def split_words(text: str, split: str) -> tuple[str, ...]:
    """The words of a split from a list `a, b | c | d` (train | validation | test)."""
    groups = text.split(" | ")
    group = groups[list(SPLIT_ROWS).index(split)] if len(groups) > 1 else groups[0]
    return tuple(word.strip() for word in group.split(","))


def fill(template: str, split: str, rng: random.Random) -> str:
    """Replace every `{slot}` by a word of the split; words may hold slots in turn."""
    while slot := re.search(r"\{(\w+)\}", template):
        word = rng.choice(split_words(WORDS[slot[1]], split))
        template = template[: slot.start()] + word + template[slot.end() :]
    return template


def polish(text: str, ending: str = "") -> str:
    """Make a sentence of a filled template: `an` before vowels, a capital first letter, an ending if it has none."""
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ending)


def topic_row(index: int, split: str, rng: random.Random) -> Row:
    """One text about a topic, at times opened by a phrase and followed by an aside about something else."""
    topic = TOPICS[index % len(TOPICS)]
    parts = [rng.choice(TOPIC[topic].of(split))]
    if rng.random() < OPENER_SHARE:
        parts.insert(0, "{opener},")
    if rng.random() < ASIDE_SHARE:
        parts.append("{aside}")
    return {"text": polish(fill(" ".join(parts), split, rng), rng.choice(PLAIN_ENDINGS)), "label": topic}


def sentence_type_row(index: int, split: str, rng: random.Random) -> Row:
    """One sentence whose last mark hints at its type but does not decide it."""
    label = SENTENCE_TYPES[index % len(SENTENCE_TYPES)]
    text = fill(rng.choice(SENTENCE_TYPE[label].of(split)), split, rng)
    return {"text": polish(text, rng.choice(ENDINGS[label])), "label": label}


def sentiment_row(index: int, split: str, rng: random.Random) -> Row:
    """One sentence of a review."""
    label = SENTIMENTS[index % len(SENTIMENTS)]
    text = fill(rng.choice(SENTIMENT[label].of(split)), split, rng)
    return {"text": polish(text, rng.choice(PLAIN_ENDINGS)), "label": label}


def topic_sentiment_row(index: int, split: str, rng: random.Random) -> Row:
    """One opinion: its subject gives the topic, what is said of it the sentiment; all nine pairs are as frequent."""
    topic = TOPICS[index % len(TOPICS)]
    sentiment = SENTIMENTS[index // len(TOPICS) % len(SENTIMENTS)]
    template = rng.choice(TOPIC_SENTIMENT[sentiment].of(split)).replace("{subject}", f"{{{topic}}}")
    text = polish(fill(template, split, rng), rng.choice(PLAIN_ENDINGS))
    return {"text": text, "topic": topic, "sentiment": sentiment}


def nameless_sentence(split: str, rng: random.Random) -> list[str]:
    """The tokens of a sentence of another task that holds no name, date or number.

    Without such rows a model sees names wherever it meets a sentence that is not built like those of the templates.
    """
    while True:
        make_row = rng.choice((topic_row, sentence_type_row, sentiment_row))
        tokens = re.findall(r"\w+(?:['’-]\w+)*|[^\w\s]", make_row(rng.randrange(len(TOPICS)), split, rng)["text"])
        is_plain = tokens[0] not in NAME_WORDS and not any(re.search(r"[A-Z0-9]", token) for token in tokens[1:])
        if is_plain:
            return tokens


def entities_row(index: int, split: str, rng: random.Random) -> Row:
    """One tokenised sentence with a BIO tag for every token."""
    if rng.random() < NAMELESS_SHARE:
        nameless = nameless_sentence(split, rng)
        return {"tokens": nameless, "ner_tags": ["O"] * len(nameless)}
    tokens: list[str] = []
    tags: list[str] = []
    for piece in rng.choice(ENTITIES.of(split)).split():
        words = fill(piece, split, rng).split()
        entity = piece.strip("{}")
        is_entity = entity in ENTITY_TYPES
        tokens += words
        tags += [f"{'I' if place else 'B'}-{entity}" if is_entity else "O" for place in range(len(words))]
    tokens = polish(" ".join(tokens)).split()
    if rng.random() < LOWER_CASE_SHARE:
        tokens = [token.lower() for token in tokens]
    return {"tokens": tokens, "ner_tags": tags}


@dataclass(frozen=True)
class Thing:
    """An agent, action or place of a scene: its line of near things, and the ways to say it."""

    line: int
    phrasings: tuple[str, ...]


@functools.cache
def split_things(block: tuple[str, ...], split: str) -> tuple[Thing, ...]:
    """The agents, actions or places that a split is drawn from."""
    return tuple(
        Thing(line, tuple(word.split("/"))) for line, text in enumerate(block) for word in split_words(text, split)
    )


def similarity_row(index: int, split: str, rng: random.Random) -> Row:
    """Two scenes that share some of agent, action and place; the score is the weighted share that is the same or near.

    The index cycles through which parts are drawn anew, so that scores from 0 to 1 all occur.
    """
    blocks = {"agent": AGENTS, "action": ACTIONS, "place": PLACES}
    first = {part: rng.choice(split_things(block, split)) for part, block in blocks.items()}
    second = dict(first)
    for bit, (part, block) in enumerate(blocks.items()):
        if index >> bit & 1:
            second[part] = rng.choice(split_things(block, split))
    is_negated = rng.random() < NEGATION_SHARE
    sentence = describe(first, SCENES, split, rng)
    other = sentence
    while other == sentence:
        other = describe(second, NEGATED_SCENES if is_negated else SCENES, split, rng)
    score = sum(weight * near(first[part], second[part]) for part, weight in SCENE_WEIGHTS.items())
    return {
        "sentence1": sentence,
        "sentence2": other,
        "score": round(score * (NEGATION_FACTOR if is_negated else 1.0), 3),
    }


def near(first: Thing, second: Thing) -> float:
    """1 for the same thing, however it is phrased, less for things of one line, 0 for all others."""
    if first == second:
        return 1.0
    return NEAR_SIMILARITY if first.line == second.line else 0.0


def describe(scene: dict[str, Thing], templates: Templates, split: str, rng: random.Random) -> str:
    """Put a scene into words."""
    words = {part: rng.choice(thing.phrasings) for part, thing in scene.items()}
    return polish(rng.choice(templates.of(split)).format(**words), ".")


def text_features(**labels: tuple[str, ...]) -> Features:
    """Features of a text with one class label a column."""
    return Features({"text": Value("string")} | {name: ClassLabel(names=list(names)) for name, names in labels.items()})


ROW_MAKERS: dict[str, tuple[RowMaker, Features]] = {
    "topic": (topic_row, text_features(label=TOPICS)),
    "sentence_type": (sentence_type_row, text_features(label=SENTENCE_TYPES)),
    "sentiment": (sentiment_row, text_features(label=SENTIMENTS)),
    "entities": (
        entities_row,
        Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=list(ENTITY_TAGS)))}),
    ),
    "similarity": (
        similarity_row,
        Features({"sentence1": Value("string"), "sentence2": Value("string"), "score": Value("float32")}),
    ),
    "topic_sentiment": (topic_sentiment_row, text_features(topic=TOPICS, sentiment=SENTIMENTS)),
}


# ---------------------------------------------------------------------------------------------------------------------
# Files


def named_rows(dataset: Dataset) -> Iterator[Row]:
    """The rows of a data set with label names in place of class indices."""
    features = dataset.features
    for row in dataset:
        for column, feature in features.items():
            if isinstance(feature, ClassLabel):
                row[column] = feature.int2str(row[column])
            elif isinstance(feature, List) and isinstance(feature.feature, ClassLabel):
                row[column] = feature.feature.int2str(row[column])
        yield row


def as_csv(dataset: Dataset, delimiter: str = ",") -> bytes:
    """A table with a header line; fields are quoted where they hold the delimiter or a quote."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, dataset.column_names, delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(named_rows(dataset))
    return buffer.getvalue().encode()


def as_tsv(dataset: Dataset) -> bytes:
    """As `as_csv`, with tabs."""
    return as_csv(dataset, "\t")


def as_json_lines(dataset: Dataset) -> bytes:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in named_rows(dataset)).encode()


def as_conll(dataset: Dataset) -> bytes:
    """`token tag` lines, an empty line after each sentence."""
    sentences = ([f"{pair[0]} {pair[1]}\n" for pair in zip(*row.values(), strict=True)] for row in named_rows(dataset))
    return "".join("".join(lines) + "\n" for lines in sentences).encode()


def as_parquet(dataset: Dataset) -> bytes:
    """A Parquet file that keeps the features."""
    buffer = io.BytesIO()
    dataset.to_parquet(buffer)
    return buffer.getvalue()


FORMATS: dict[str, tuple[str, Callable[[Dataset], bytes]]] = {
    "topic": ("csv", as_csv),
    "sentence_type": ("tsv", as_tsv),
    "sentiment": ("jsonl", as_json_lines),
    "entities": ("conll", as_conll),
    "similarity": ("parquet", as_parquet),
    "topic_sentiment": ("csv", as_csv),
}


def render_readme() -> bytes:
    """The page that explains the files."""
    return README.format(
        topics=", ".join(TOPICS),
        sentence_types=", ".join(SENTENCE_TYPES),
        sentiments=", ".join(SENTIMENTS),
        entity_types=", ".join(ENTITY_TYPES),
        rows="Rows in each: " + ", ".join(f"{split} {count:,}" for split, count in SPLIT_ROWS.items()),
    ).encode()


def render_files(seed: int = 0) -> dict[str, bytes]:
    """Every file of the example data: path below the target folder -> content."""
    files = {"README.md": render_readme()}
    for name, (suffix, render) in FORMATS.items():
        for split, dataset in generate(name, seed).items():
            files[f"{name}/{split}.{suffix}"] = render(dataset)
    return files


def write_files(folder: Path, seed: int = 0, force: bool = False) -> list[Path]:
    """Write the example data as files below `folder` and return their paths.

    Args:
        folder (Path): Made if it is missing.
        seed (int): See `generate`.
        force (bool): Replace files that are there with other content. Files with the same content are no obstacle.

    Raises:
        FileExistsError: if a file is there with other content and `force` is not set; then nothing is written.
    """
    files = {folder / path: content for path, content in render_files(seed).items()}
    changed = [str(path) for path, content in files.items() if path.exists() and path.read_bytes() != content]
    if changed and not force:
        raise FileExistsError(
            f"Example data never replaces other files, but {len(changed)} differ from what would be written: "
            f"{', '.join(changed)}. Choose another folder, or replace them with --force."
        )
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return list(files)


def main(arguments: list[str] | None = None) -> None:
    """Write the example data as files: the command line."""
    parser = CommandParser(doc=HELP)
    parser.add_argument("folder", type=Path, help="where to write; one sub-folder a task is made")
    parser.add_argument("--seed", type=int, default=0, help="draws other sentences (default: 0)")
    parser.add_argument("--force", action="store_true", help="replace files that are there with other content")
    options = parser.parse_args(arguments)
    try:
        written = write_files(options.folder, options.seed, options.force)
    except FileExistsError as error:
        parser.error(str(error))
    logger.info("Wrote %d files below %s; its README.md explains them.", len(written), options.folder)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
