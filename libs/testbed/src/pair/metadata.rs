//! The question who leads, which our client answers for itself and tells nobody.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

/// Time for an answer.
const LIMIT: Duration = Duration::from_secs(5);
/// The question's number and version in Kafka's protocol.
const METADATA: [u8; 4] = [0, 3, 0, 4];
/// The number of this one question, and no name of who asks.
const ASKER: [u8; 6] = [0, 0, 0, 0, 0xff, 0xff];

/// What a node knows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// How many nodes may lead.
    pub(super) nodes: usize,
    /// The leader of each partition; -1 where there is none.
    pub(super) leaders: Vec<i32>,
}

/// Asks the node on this port who leads the partitions of some topics.
pub(super) fn ask(port: u16, topics: &[&str]) -> io::Result<Known> {
    let mut question = [METADATA.as_slice(), &ASKER, &(topics.len() as i32).to_be_bytes()].concat();
    for topic in topics {
        question.extend((topic.len() as i16).to_be_bytes());
        question.extend(topic.as_bytes());
    }
    // No topic is to be made.
    question.push(0);
    let mut node = TcpStream::connect(("127.0.0.1", port))?;
    node.set_read_timeout(Some(LIMIT))?;
    node.write_all(&[&(question.len() as i32).to_be_bytes(), question.as_slice()].concat())?;
    let mut length = [0; 4];
    node.read_exact(&mut length)?;
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    node.read_exact(&mut answer)?;
    read(&mut answer.as_slice()).ok_or_else(|| io::Error::other("the answer ends too early"))
}

/// Reads an answer, in the order of its fields.
fn read(answer: &mut &[u8]) -> Option<Known> {
    let (_question, _throttle) = (int(answer)?, int(answer)?);
    let nodes = int(answer)?;
    for _ in 0..nodes {
        let (_node, _host, _port, _rack) = (int(answer)?, skip_text(answer)?, int(answer)?, skip_text(answer)?);
    }
    let (_cluster, _controller) = (skip_text(answer)?, int(answer)?);
    let mut leaders = Vec::new();
    for _ in 0..int(answer)? {
        let (_error, _name, _internal) = (take::<2>(answer)?, skip_text(answer)?, take::<1>(answer)?);
        for _ in 0..int(answer)? {
            let (_error, _partition) = (take::<2>(answer)?, int(answer)?);
            leaders.push(int(answer)?);
            // Its replicas, and those of them that have everything.
            for _ in 0..2 {
                let count = int(answer)?;
                (0..count).try_for_each(|_| int(answer).map(drop))?;
            }
        }
    }
    Some(Known { nodes: usize::try_from(nodes).ok()?, leaders })
}

fn take<const N: usize>(answer: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = answer.split_first_chunk()?;
    *answer = rest;
    Some(*taken)
}

fn int(answer: &mut &[u8]) -> Option<i32> {
    take(answer).map(i32::from_be_bytes)
}

/// A text has its length before it, which is negative where there is none.
fn skip_text(answer: &mut &[u8]) -> Option<()> {
    let length = i16::from_be_bytes(take(answer)?);
    *answer = answer.get(usize::try_from(length).unwrap_or_default()..)?;
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_to_its_end_and_not_beyond() {
        let node = [0, 0, 0, 1, 0, 1, b'h', 0, 0, 35, 132, 0xff, 0xff];
        let partition = |leader: u8| [0, 0, 0, 0, 0, 0, 0, 0, 0, leader, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0];
        let topic = [[0, 0, 0, 1, b't', 0].as_slice(), &[0, 0, 0, 2], &partition(2), &partition(1)].concat();
        let answer =
            [[0; 8].as_slice(), &[0, 0, 0, 1], &node, &[0, 2, b'i', b'd', 0, 0, 0, 1], &[0, 0, 0, 1], &topic].concat();
        assert_eq!(read(&mut answer.as_slice()), Some(Known { nodes: 1, leaders: vec![2, 1] }));
        assert_eq!(read(&mut &answer[..answer.len() - 1]), None);
    }
}
