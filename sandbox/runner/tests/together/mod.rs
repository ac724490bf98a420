//! Answers that are made in the same decodes: each is its own, and none waits for another.

use crate::{
    endless,
    harness::{Peer, greedy, load, of, user},
    reuse::same_but_for_rounding,
};
use appliance_types::Task;
use sandbox_wire::runner::{Constraint, FinishReason, FromRunner, Generate, Load, Prompt, Sampling, ToRunner};

const QUESTIONS: [&str; 4] =
    ["Why is the sky blue?", "Name three fruits.", "What is the capital of Italy?", "Tell me about a fox and a crow."];

fn four(system: &str) -> Peer {
    Peer::load(Load { context_tokens: 512, slots: 4, system: Some(system.into()), ..load(Task::Chat) })
}

#[test]
fn a_prompt_of_4096_tokens_stalls_nobody() {
    let mut peer = Peer::load(Load { context_tokens: 8192, slots: 2, ..load(Task::Completion) });
    let running = endless(&mut peer);
    let running = peer.ask(running);
    while !matches!(peer.receive().unwrap(), FromRunner::Text { .. }) {}
    let long = peer.ask(Generate { tokens_max: 1, ..of(Prompt::Tokens(vec![100; 4096])) });
    let (mut started, mut meanwhile) = (false, 0);
    loop {
        match peer.receive().unwrap() {
            FromRunner::Started { id, .. } if id == long => started = true,
            FromRunner::Finished { id, finished } if id == long => {
                assert_eq!((finished.prompt_tokens, finished.completion_tokens), (4096, 1));
                break;
            }
            FromRunner::Text { id, .. } if id == running && started => meanwhile += 1,
            other => assert!(!other.is_last(), "{other:?}"),
        }
    }
    // 64 tokens of a prompt a decode, beside each of which the other answer has a token.
    assert!(meanwhile >= 4096 / 64 - 1, "{meanwhile} tokens beside it");
}

#[test]
fn all_share_the_system_prompt_at_once() {
    let mut peer = four("You are a patient teacher. Answer in one or two sentences.");
    let held = peer.info.system_tokens;
    let asked: Vec<_> = QUESTIONS.iter().map(|question| peer.ask(greedy(question))).collect();
    let (mut started, mut ended) = (0, 0);
    while ended < asked.len() {
        match peer.receive().unwrap() {
            FromRunner::Started { cached_tokens, .. } => {
                assert_eq!((cached_tokens, ended), (held, 0));
                started += 1;
            }
            FromRunner::Finished { .. } => {
                assert_eq!(started, 4, "all had begun before the first ended");
                ended += 1;
            }
            FromRunner::Text { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn each_has_its_own_sampling_grammar_stop_and_end() {
    let mut peer = four("Be brief.");
    let schema = r#"{"type":"object","properties":{"fruits":{"type":"array","minItems":3,"maxItems":3,
        "items":{"enum":["apple","banana","plum"]}}},"required":["fruits"],"additionalProperties":false}"#;
    let whole = peer.generate(greedy(QUESTIONS[3])).unwrap().text();
    let stop: String = whole.chars().skip(20).take(6).collect();
    let forever = endless(&mut peer);
    let requests = [
        Generate { sampling: Sampling { temperature: 1.5, seed: 3, ..Sampling::greedy() }, ..greedy(QUESTIONS[0]) },
        Generate { constraint: Constraint::JsonSchema(schema.into()), tokens_max: 80, ..greedy(QUESTIONS[1]) },
        Generate { stop: vec![stop.clone()], ..greedy(QUESTIONS[3]) },
        Generate { tokens_max: 400, ..forever },
    ];
    let ids: Vec<_> = requests.iter().map(|request| peer.ask(request.clone())).collect();
    let (mut texts, mut reasons) = (vec![String::new(); 4], vec![None; 4]);
    while reasons.contains(&None) {
        let message = peer.receive().unwrap();
        let at = ids.iter().position(|id| message.id() == Some(*id)).unwrap();
        match message {
            FromRunner::Text { text, .. } => texts[at] += &text.text,
            FromRunner::Finished { finished, .. } => {
                reasons[at] = Some(finished.reason);
                if reasons[..3].iter().all(Option::is_some) && at != 3 {
                    peer.send(&ToRunner::Cancel { id: ids[3] });
                }
            }
            other => assert!(matches!(other, FromRunner::Started { .. }), "{other:?}"),
        }
    }
    let fruits: serde_json::Value = serde_json::from_str(&texts[1]).unwrap();
    assert_eq!(fruits["fruits"].as_array().unwrap().len(), 3);
    assert!(!texts[2].contains(&stop) && texts[2].len() < whole.len(), "{stop:?}: {texts:?}");
    assert_eq!((reasons[1], reasons[2]), (Some(FinishReason::Stop), Some(FinishReason::Stop)));
    assert_eq!(reasons[3], Some(FinishReason::Cancelled));
    let chosen = Generate { sampling: Sampling::greedy(), ..requests[0].clone() };
    assert_ne!(peer.generate(chosen).unwrap().text(), texts[0], "it alone was drawn at random");
}

#[test]
fn texts_are_the_same_beside_others_but_for_rounding() {
    let mut peer = four("You are a patient teacher. Answer in one or two sentences.");
    let request = |question: &str| Generate { logprobs: Some(5), ..of(Prompt::Chat(vec![user(question)])) };
    let alone: Vec<_> = QUESTIONS.iter().map(|question| peer.generate(request(question)).unwrap()).collect();
    let ids: Vec<_> = QUESTIONS.iter().map(|question| peer.ask(request(question))).collect();
    let together = peer.answers(&ids);
    let same = alone.iter().zip(&together).filter(|(alone, beside)| same_but_for_rounding(alone, beside)).count();
    println!("texts that are the same: {same} of {}", alone.len());
}
