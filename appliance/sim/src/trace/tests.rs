//! Each format is read, and what is wrong is told with its line.

use super::*;
use proptest::prelude::*;

fn times_ms(text: &str) -> Vec<(u128, u32)> {
    let trace = Trace::parse(text).unwrap();
    trace.requests.iter().map(|request| (request.at.as_millis(), request.function)).collect()
}

#[test]
fn each_format_is_told_by_its_header() {
    assert_eq!(
        times_ms("time_s,function,prompt_tokens,output_tokens\n5.5,b,1,2\n3,a,3,4\n\n4,b,5,6\n"),
        [(0, 1), (1000, 0), (2500, 0)]
    );
    let trace = Trace::parse("time_s,function,service_ms\r\n0,a,1500\r\n").unwrap();
    assert_eq!(trace.requests[0].work, Work::Time(Duration::from_millis(1500)));
    assert_eq!(
        times_ms(
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,374,44\n2023-11-16 18:17:04.5,1,1\n"
        ),
        [(0, 0), (520, 0)]
    );
    assert_eq!(times_ms("app,func,end_timestamp,duration\nx,f,10.5,0.5\nx,g,12,4\n"), [(0, 1), (2000, 0)]);
    assert_eq!(
        times_ms("HashOwner,HashApp,HashFunction,Trigger,1,2,3\no,a,f,http,1,0,2\no,a,g,timer,0,1,0\n"),
        [(0, 0), (60_000, 1), (105_000, 0), (135_000, 0)]
    );
}

#[test]
fn keys_are_told_apart() {
    let check = |text: &str| {
        let trace = Trace::parse(text).unwrap();
        assert_eq!(trace.keys, ["ann", "bob"]);
        assert_eq!(trace.requests.iter().map(|request| request.key).collect::<Vec<_>>(), [1, 0, 1]);
        assert_eq!(trace.only(1).requests.len(), 2);
    };
    check("time_s,function,service_ms,key\n1,f,10,ann\n0,f,10,bob\n2,f,10,bob\n");
    check("time_s,function,prompt_tokens,output_tokens,key\n1,f,1,1,ann\n0,f,1,1,bob\n2,f,1,1,bob\n");
    let many: String = (0..65).map(|key| format!("0,f,1,k{key}\n")).collect();
    let refused = Trace::parse(&format!("time_s,function,service_ms,key\n{many}")).unwrap_err();
    assert_eq!(refused.to_string(), "line 66: more than 64 keys");
}

#[test]
fn what_cannot_be_read_is_told_with_its_line() {
    let check = |text: &str, expected: &str| assert_eq!(Trace::parse(text).unwrap_err().to_string(), expected);
    assert_eq!(Trace::parse("a,b\n"), Err(TraceError::Header));
    assert_eq!(Trace::parse(""), Err(TraceError::Header));
    let own = "time_s,function,prompt_tokens,output_tokens\n1,a,1,1\n";
    check(&format!("{own}2,a,1\n"), "line 3: 3 fields where 4 are expected");
    check(&format!("{own}-2,a,1,1\n"), "line 3: `-2` is not a time");
    check(&format!("{own}NaN,a,1,1\n"), "line 3: `NaN` is not a time");
    check(&format!("{own}2,a,x,1\n"), "line 3: `x` is not a number of tokens");
    check(&format!("{own}90000000,a,1,1\n"), "line 3: more than a month from the first request");
    check("HashOwner,HashApp,HashFunction,Trigger,1\no,a,f,http,y\n", "line 2: `y` is not a number of calls");
    check("TIMESTAMP,ContextTokens,GeneratedTokens\nnow,1,1\n", "line 2: `now` is not a time");
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(
        header in prop_oneof![
            Just("time_s,function,prompt_tokens,output_tokens"), Just("time_s,function,service_ms"),
            Just("TIMESTAMP,ContextTokens,GeneratedTokens"), Just("app,func,end_timestamp,duration"),
            Just("HashOwner,HashApp,HashFunction,Trigger,1,2"), Just("time_s,function,service_ms,key"),
            Just("time_s,function,prompt_tokens,output_tokens,key"),
        ],
        lines in prop::collection::vec("[0-9a-z:. +eE-]{0,12}(,[0-9a-z:.+eE-]{0,5}){0,6}", 0..6),
    ) {
        if let Ok(trace) = Trace::parse(&format!("{header}\n{}", lines.join("\n"))) {
            prop_assert!(trace.requests.is_sorted_by_key(|request| request.at));
            prop_assert!(trace.requests.iter().all(|request| request.function < trace.functions));
        }
    }
}
