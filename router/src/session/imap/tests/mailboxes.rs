//! Commands on mailboxes by name, SELECT among them.

use super::transcript::Server;

#[tokio::test]
async fn select_tells_all_that_a_client_needs() {
    let server = Server::start().await;
    server.node.deliver_text("Subject: a\r\n\r\nb");
    server.node.deliver_text("Subject: b\r\n\r\nc");
    server
        .play(
            "
            C: a SELECT INBOX
            S: * FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft)
            S: * OK [PERMANENTFLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft \\*)] <..>
            S: * 2 EXISTS
            S: * 2 RECENT
            S: * OK [UNSEEN 1] <..>
            S: * OK [UIDVALIDITY 1001] <..>
            S: * OK [UIDNEXT 3] <..>
            S: * OK [HIGHESTMODSEQ 6] <..>
            S: a OK [READ-WRITE] <..>
            C: b STORE 1 +FLAGS.SILENT (\\Seen $Work)
            S: * FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft $Work)
            S: * OK [PERMANENTFLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft $Work \\*)] <..>
            S: b OK <..>
            C: c EXAMINE inbox
            S: * OK [CLOSED] <..>
            S: * FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft $Work)
            S: * OK [PERMANENTFLAGS ()] <..>
            S: * 2 EXISTS
            S: * 0 RECENT
            S: * OK [UNSEEN 2] <..>
            S: * OK [UIDVALIDITY 1001] <..>
            S: * OK [UIDNEXT 3] <..>
            S: * OK [HIGHESTMODSEQ 7] <..>
            S: c OK [READ-ONLY] <..>
            C: d STORE 1 FLAGS ()
            S: d NO <..>
            C: e EXPUNGE
            S: e NO <..>
            C: f SELECT missing
            S: * OK [CLOSED] <..>
            S: f NO [NONEXISTENT] <..>
            C: g FETCH 1 FLAGS
            S: g BAD <..>
            ",
        )
        .await;
}

#[tokio::test]
async fn examine_leaves_recent_to_others() {
    let server = Server::start().await;
    server.node.deliver_text("x");
    let mut client = server.client().await;
    assert!(client.command("EXAMINE INBOX").await.contains(&"* 1 RECENT".to_owned()));
    server.node.deliver_text("y");
    assert!(client.command("NOOP").await.contains(&"* 2 RECENT".to_owned()));
    assert!(client.command("SELECT INBOX").await.contains(&"* 2 RECENT".to_owned()));
    assert!(client.command("SELECT INBOX").await.contains(&"* 0 RECENT".to_owned()));
}

#[tokio::test]
async fn close_expunges_in_silence_and_unselect_and_examine_do_not() {
    let server = Server::start().await;
    server.node.deliver_text("x");
    let mut client = server.client().await;
    for (open, shut, left) in [("SELECT", "UNSELECT", 1), ("EXAMINE", "CLOSE", 1), ("SELECT", "CLOSE", 0)] {
        client.command(&format!("{open} INBOX")).await;
        client.command("STORE 1 +FLAGS.SILENT (\\Deleted)").await;
        assert_eq!(client.command(shut).await.len(), 1);
        assert_eq!(server.node.state().boxes[&1].messages.len(), left);
        assert!(client.command(shut).await[0].starts_with("x BAD "));
    }
}

#[tokio::test]
async fn mailboxes_are_made_renamed_listed_and_deleted() {
    Server::start()
        .await
        .play(
            "
            C: a CREATE Work/
            S: a OK <..>
            C: b CREATE Work/2024/May
            S: b OK <..>
            C: c CREATE work
            S: c OK <..>
            C: d CREATE Work
            S: d NO [ALREADYEXISTS] <..>
            C: e CREATE inbox
            S: e NO [ALREADYEXISTS] <..>
            C: f LIST \"\" *
            S: * LIST (\\HasNoChildren) \"/\" \"INBOX\"
            S: * LIST (\\HasNoChildren \\Drafts) \"/\" \"Drafts\"
            S: * LIST (\\HasNoChildren \\Sent) \"/\" \"Sent\"
            S: * LIST (\\HasNoChildren \\Trash) \"/\" \"Trash\"
            S: * LIST (\\HasChildren) \"/\" \"Work\"
            S: * LIST (\\Noselect \\HasChildren) \"/\" \"Work/2024\"
            S: * LIST (\\HasNoChildren) \"/\" \"Work/2024/May\"
            S: * LIST (\\HasNoChildren) \"/\" \"work\"
            S: f OK <..>
            C: g LIST \"\" \"\"
            S: * LIST (\\Noselect) \"/\" \"\"
            S: g OK <..>
            C: h RENAME work Entw&APw-rfe
            S: h OK <..>
            C: i LIST \"\" E%
            S: * LIST (\\HasNoChildren) \"/\" \"Entw&APw-rfe\"
            S: i OK <..>
            C: j DELETE Entw&APw-rfe
            S: j OK <..>
            C: k DELETE INBOX
            S: k NO [CANNOT] <..>
            C: l DELETE missing
            S: l NO [NONEXISTENT] <..>
            C: m RENAME missing other
            S: m NO [NONEXISTENT] <..>
            C: n LIST (SPECIAL-USE) \"\" * RETURN (SPECIAL-USE)
            S: * LIST (\\HasNoChildren \\Drafts) \"/\" \"Drafts\"
            S: * LIST (\\HasNoChildren \\Sent) \"/\" \"Sent\"
            S: * LIST (\\HasNoChildren \\Trash) \"/\" \"Trash\"
            S: n OK <..>
            C: o CREATE Old (USE (\\Archive))
            S: o OK <..>
            C: p LIST \"\" Old
            S: * LIST (\\HasNoChildren \\Archive) \"/\" \"Old\"
            S: p OK <..>
            C: q CREATE Odd (USE (\\Foo))
            S: q NO [USEATTR] <..>
            C: r CREATE Odd (USE (\\Sent \\Trash))
            S: r NO [USEATTR] <..>
            ",
        )
        .await;
}

#[tokio::test]
async fn subscriptions_outlive_their_mailboxes() {
    Server::start()
        .await
        .play(
            "
            C: a SUBSCRIBE Work/2024
            S: a OK <..>
            C: b SUBSCRIBE inbox
            S: b OK <..>
            C: c LSUB \"\" *
            S: * LSUB () \"/\" \"INBOX\"
            S: * LSUB () \"/\" \"Work/2024\"
            S: c OK <..>
            C: d LSUB \"\" %
            S: * LSUB () \"/\" \"INBOX\"
            S: * LSUB (\\Noselect) \"/\" \"Work\"
            S: d OK <..>
            C: e LIST \"\" INBOX RETURN (SUBSCRIBED)
            S: * LIST (\\HasNoChildren \\Subscribed) \"/\" \"INBOX\"
            S: e OK <..>
            C: f UNSUBSCRIBE Work/2024
            S: f OK <..>
            C: g LSUB \"\" W*
            S: g OK <..>
            ",
        )
        .await;
}

#[tokio::test]
async fn status_tells_what_is_asked() {
    let server = Server::start().await;
    server.node.deliver_text("x");
    server
        .play(
            "
            C: a STATUS INBOX (MESSAGES RECENT UIDNEXT UIDVALIDITY UNSEEN HIGHESTMODSEQ)
            S: * STATUS \"INBOX\" (MESSAGES 1 RECENT 1 UIDNEXT 2 UIDVALIDITY 1001 UNSEEN 1 HIGHESTMODSEQ 5)
            S: a OK <..>
            C: b STATUS missing (MESSAGES)
            S: b NO [NONEXISTENT] <..>
            ",
        )
        .await;
}
