//! What a tenant asked before is not computed again, and nobody else profits from it.

use crate::{
    endless,
    harness::{Answer, Peer, load, of, system, user},
};
use appliance_types::Task;
use sandbox_wire::runner::{FinishReason, FromRunner, Generate, Load, Message, Prompt, Role, Tenant, ToRunner};
use std::collections::HashMap;

const ANN: Option<Tenant> = Some(Tenant(1));
const BOB: Option<Tenant> = Some(Tenant(2));
const RULES: &str = "You are a patient teacher. Answer in one or two sentences.";

/// How far the logarithm of a probability may lie from what a request that is alone and new gets.
const ROUNDING: f32 = 0.25;

/// A chat function with a system prompt.
fn teacher(slots: u32) -> Peer {
    Peer::load(Load { context_tokens: 1024, slots, system: Some(RULES.into()), ..load(Task::Chat) })
}

/// A tenant's conversation.
#[derive(Clone)]
struct Talk {
    tenant: Option<Tenant>,
    messages: Vec<Message>,
}

impl Talk {
    fn of(tenant: Option<Tenant>) -> Self {
        Self { tenant, messages: Vec::new() }
    }

    fn asking(mut self, question: &str) -> Self {
        self.messages.push(user(question));
        self
    }

    fn request(&self) -> Generate {
        Generate { tenant: self.tenant, logprobs: Some(5), ..of(Prompt::Chat(self.messages.clone())) }
    }

    /// Asks, and remembers the answer.
    fn ask(&mut self, peer: &mut Peer, question: &str) -> Answer {
        self.messages.push(user(question));
        let answer = peer.generate(self.request()).unwrap();
        self.messages.push(Message { role: Role::Assistant, ..user(&answer.text()) });
        answer
    }
}

/// Asserts the limit that `sandbox-model`'s engine documents: token for token the same likelihoods but for rounding, up to a
/// token where two are that close; what comes after such a choice is another text. Gives whether the texts are the same.
pub(crate) fn same_but_for_rounding(alone: &Answer, other: &Answer) -> bool {
    let tokens = |answer: &Answer| answer.pieces.iter().flat_map(|piece| piece.logprobs.clone()).collect::<Vec<_>>();
    for (expected, got) in tokens(alone).iter().zip(&tokens(other)) {
        let among = expected.top.iter().find(|top| top.bytes == got.bytes);
        let among = among.unwrap_or_else(|| panic!("{got:?} was not likely: {expected:?}"));
        assert!((among.logprob - got.logprob).abs() < ROUNDING, "{got:?} {expected:?}");
        if got.bytes != expected.bytes {
            assert!(expected.logprob - among.logprob < ROUNDING, "{got:?} {expected:?}");
            return false;
        }
    }
    assert_eq!(alone.text(), other.text());
    true
}

#[test]
fn a_next_turn_finds_what_the_last_one_fed() {
    let mut peer = teacher(4);
    let (mut talk, held) = (Talk::of(ANN), peer.info.system_tokens);
    let first = talk.ask(&mut peer, "Why is the sky blue?");
    assert_eq!(first.cached_tokens, held);
    let second = talk.ask(&mut peer, "And in the evening?");
    assert!(second.cached_tokens >= first.prompt_tokens, "{second:?}");
    assert_eq!(second.finished.cached_tokens, second.cached_tokens);
    let third = talk.ask(&mut peer, "And at night?");
    assert!(third.cached_tokens >= second.prompt_tokens, "{third:?}");
    // The same prompt again: all is found but the last token, which must be fed.
    talk.messages.pop();
    let again = peer.generate(talk.request()).unwrap();
    assert_eq!(again.cached_tokens, again.prompt_tokens - 1);
    same_but_for_rounding(&third, &again);
}

#[test]
fn nobody_else_finds_it() {
    let mut peer = teacher(4);
    let (mut talk, held) = (Talk::of(ANN), peer.info.system_tokens);
    talk.ask(&mut peer, "Why is the sky blue?");
    let talk = talk.asking("And in the evening?");
    let copied = |tenant| Talk { tenant, ..talk.clone() }.request();
    assert_eq!(peer.generate(copied(BOB)).unwrap().cached_tokens, held);
    assert!(peer.generate(talk.request()).unwrap().cached_tokens > held, "it was still there");
    // Who has no tenant leaves nothing, not even for others without one.
    for _ in 0..2 {
        assert_eq!(peer.generate(copied(None)).unwrap().cached_tokens, held);
    }
    assert_eq!(peer.generate(copied(BOB)).unwrap().cached_tokens, held);
    // Nothing of it is found in another runner.
    drop(peer);
    assert_eq!(teacher(4).generate(talk.request()).unwrap().cached_tokens, held);
}

#[test]
fn conversations_side_by_side_stay_whole_while_there_are_slots() {
    let mut peer = teacher(3);
    let held = peer.info.system_tokens;
    let rules =
        system("You are a patient teacher. You teach children of ten years about nature, and never use hard words.");
    let talk = || Talk { tenant: ANN, messages: vec![rules.clone()] };
    let (mut sky, mut sea, mut bob) = (talk(), talk(), Talk::of(BOB));
    let first = sky.ask(&mut peer, "Why is the sky blue?");
    let second = sea.ask(&mut peer, "Why is the sea salty?");
    assert!(first.cached_tokens < held && second.cached_tokens > first.cached_tokens, "the instructions are shared");
    let third = bob.ask(&mut peer, "What is rain?");
    for (talk, last) in [(&mut sky, first), (&mut sea, second), (&mut bob, third)] {
        let next = talk.ask(&mut peer, "Tell me more.");
        assert!(next.cached_tokens >= last.prompt_tokens, "{next:?}");
        assert!(talk.ask(&mut peer, "And more?").cached_tokens >= next.prompt_tokens);
    }
    // A fourth conversation takes the slot that was used least recently, and no other.
    let mut fourth = Talk::of(BOB);
    assert_eq!(fourth.ask(&mut peer, "Who was Ada Lovelace?").cached_tokens, held);
    assert!(sea.ask(&mut peer, "More?").cached_tokens > 60);
    assert!(sky.ask(&mut peer, "More?").cached_tokens < 60);
}

#[test]
fn what_was_cancelled_is_found_as_far_as_it_was_fed() {
    let mut peer = teacher(2);
    let held = peer.info.system_tokens;
    let stubborn = Generate { tenant: ANN, ..endless(&mut peer) };
    let running = peer.ask(stubborn.clone());
    let mut texts = 0;
    while texts < 8 {
        texts += u32::from(matches!(peer.receive().unwrap(), FromRunner::Text { .. }));
    }
    peer.send(&ToRunner::Cancel { id: running });
    while !peer.receive().unwrap().is_last() {}
    let again = peer.generate(Generate { tokens_max: 1, ..stubborn.clone() }).unwrap();
    assert_eq!(again.cached_tokens, again.prompt_tokens - 1);
    let late = peer.generate(Generate { tenant: BOB, deadline_ms: 0, ..stubborn }).unwrap();
    assert_eq!((late.finished.reason, late.cached_tokens), (FinishReason::Deadline, held));
    // What is refused takes nobody's slot.
    let long = of(Prompt::Tokens(vec![100; 1024]));
    peer.generate(Generate { tenant: BOB, ..long }).unwrap_err();
    let after = peer.generate(Generate { tokens_max: 1, tenant: ANN, ..of(Prompt::Chat(vec![user(crate::QUESTION)])) });
    let after = after.unwrap();
    assert_eq!(after.cached_tokens, after.prompt_tokens - 1);
}

#[test]
fn without_a_tenant_an_answer_alone_is_the_same_to_the_last_bit() {
    let mut peer = teacher(4);
    let request = Talk::of(None).asking("Why is the sky blue?").request();
    let alone = peer.generate(request.clone()).unwrap();
    for (tenant, words) in [(ANN, 10), (BOB, 150), (ANN, 400)] {
        // So long that more than 512 cells are in use, from where on the threads share each row of attention.
        Talk::of(tenant).ask(&mut peer, &format!("Count these: {}", "word ".repeat(words)));
        assert_eq!(peer.generate(request.clone()).unwrap().pieces, alone.pieces);
    }
}

/// Several conversations of three tenants on two slots, so that some are found, some are shared and some made room.
#[test]
fn answers_are_the_same_with_and_without_but_for_rounding() {
    let openings = [
        (ANN, ["Why is the sky blue?", "And in the evening?", "What would it be on Mars?", "Thank you. Say goodbye."]),
        (BOB, ["Name three fruits.", "Which of them is red?", "How is it eaten?", "Write a line of a poem about it."]),
        (Some(Tenant(3)), ["What is 12 + 30?", "And half of that?", "Write it in words.", "Is it even?"]),
        (ANN, ["Who wrote Hamlet?", "When did he live?", "Name another play.", "Who is its hero?"]),
        (BOB, ["Translate `good night` to French.", "And to Spanish?", "And to Italian?", "Which is the shortest?"]),
    ];
    let mut peer = teacher(2);
    let mut talks: Vec<Talk> = openings.iter().map(|(tenant, _)| Talk::of(*tenant)).collect();
    let mut asked = Vec::new();
    for pair in [&[0, 1][..], &[2, 3], &[4]] {
        for turn in 0..4 {
            for &index in pair {
                let question = openings[index].1[turn];
                let request = talks[index].clone().asking(question).request();
                asked.push((request, talks[index].ask(&mut peer, question)));
            }
        }
    }
    let reused = asked.iter().filter(|(_, answer)| answer.cached_tokens > peer.info.system_tokens).count();
    assert!(reused >= 15, "{reused} of {} found their last turn", asked.len());
    drop(peer);
    let mut fresh = teacher(2);
    let mut fates: HashMap<bool, usize> = HashMap::new();
    for (request, answer) in asked {
        let alone = fresh.generate(Generate { tenant: None, ..request }).unwrap();
        *fates.entry(same_but_for_rounding(&alone, &answer)).or_default() += 1;
    }
    println!("texts that are the same, and that are not: {fates:?}");
}
